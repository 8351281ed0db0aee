"""DETR on one page: inference in plain PyTorch, with the names of the published demo weights (detr_demo-da2a99e9.pth).

Simpler than the model of the paper: positions are learned and added once, to the input; the box head is one layer; one
image at a time.    python examples/minimal_detr.py image.jpg detr_demo-da2a99e9.pth
"""

import sys

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.transforms.v2 import functional as F


class MinimalDETR(nn.Module):
    """Image -> features -> tokens with positions -> transformer with queries -> classes and boxes."""

    def __init__(self, num_classes: int = 91, width: int = 256, num_queries: int = 100) -> None:
        super().__init__()
        self.backbone = resnet50()
        del self.backbone.fc  # the published weights have none
        self.conv = nn.Conv2d(2048, width, 1)
        self.transformer = nn.Transformer(width, nhead=8, num_encoder_layers=6, num_decoder_layers=6, batch_first=True)
        self.query_pos = nn.Parameter(torch.rand(num_queries, width))
        self.row_embed = nn.Parameter(torch.rand(50, width // 2))  # 50 cells of 32 px: images up to 1600 px
        self.col_embed = nn.Parameter(torch.rand(50, width // 2))
        self.linear_class = nn.Linear(width, num_classes + 1)  # the last class is "no object"
        self.linear_bbox = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """From one image, (1, 3, H, W), to class scores (Q, K) and boxes (Q, 4), cxcywh relative to the image."""
        net = self.backbone
        features = net.maxpool(net.relu(net.bn1(net.conv1(image))))
        features = self.conv(net.layer4(net.layer3(net.layer2(net.layer1(features)))))
        height, width = features.shape[-2:]
        columns = self.col_embed[:width].expand(height, -1, -1)
        rows = self.row_embed[:height, None].expand(-1, width, -1)
        positions = torch.cat([columns, rows], dim=-1).flatten(0, 1)  # (h w, D)
        tokens = 0.1 * features[0].flatten(1).T + positions
        decoded = self.transformer(tokens[None], self.query_pos[None])[0]
        return self.linear_class(decoded).softmax(-1)[:, :-1], self.linear_bbox(decoded).sigmoid()


@torch.inference_mode()
def main(image_path: str, weights_path: str, threshold: float = 0.7) -> None:
    """Print the objects of one image."""
    model = MinimalDETR().eval()
    model.load_state_dict(torch.load(weights_path, weights_only=True))
    image = F.to_dtype(F.to_image(Image.open(image_path).convert("RGB")), torch.float32, scale=True)
    image = F.normalize(F.resize(image, [800], max_size=1333), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for scores, (cx, cy, w, h) in zip(*model(image[None]), strict=True):
        if scores.max() > threshold:
            print(
                f"class {int(scores.argmax())} {float(scores.max()):.2f} at x {cx:.2f} y {cy:.2f} size {w:.2f} x {h:.2f}"
            )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
