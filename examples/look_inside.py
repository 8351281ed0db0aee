# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Look inside DETR
# This notebook trains a small DETR on drawn shapes and follows one image through it: position encodings, encoder
# self-attention, decoder attention, and Hungarian matching with its costs. At the end, DETR is written again in about 50
# lines of PyTorch, which give the same outputs with the same weights.
#
# It takes about six minutes of processor time, most of it for training. References are to the paper,
# [arXiv:2005.12872](https://arxiv.org/abs/2005.12872).

# %%
import math
import os

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

import detrkit
from detrkit.data.synthetic import SyntheticShapes

SHORT = os.environ.get("DETRKIT_SHORT") == "1"  # tests set it: few images and one epoch, so nothing is learned
plt.rcParams.update({"figure.dpi": 150, "font.size": 8})

# %% [markdown]
# ## 1. A small DETR
# `detr-tiny` has the parts of the paper's model in a small size: feature maps with a stride of 8, 2 encoder layers, 3
# decoder layers, 128 channels. 12 queries are enough for at most 6 shapes. DETR learns slowly: after 12 epochs, many
# shapes are still missed.

# %%
train_images = SyntheticShapes(24 if SHORT else 3000, seed=0)
val_images = SyntheticShapes(8 if SHORT else 100, seed=1)
result = detrkit.train(
    train_images,
    model="detr-tiny",
    val=val_images,
    epochs=1 if SHORT else 12,
    batch_size=16,
    image_size=64,
    num_queries=12,
    lr=5e-4,
    backbone_lr=1.5e-3,
    clip_grad_norm=1.0,
    eos_coef=0.3,
    crop=0.0,
    evaluate_every=4,
    output="runs/detr-tiny",
)
result

# %%
sample = val_images[1]
explanation = detrkit.explain(
    result.detector, sample.image, annotations=sample.annotations, threshold=0.0 if SHORT else 0.5
)
print(explanation)

# %% [markdown]
# ## 2. Position encodings
# Attention does not know where a token is from. So every cell of the feature map has a position encoding: sines and
# cosines of its row in the first half of the channels, of its column in the second half (appendix A.4). It is added to
# queries and keys of every attention, not to values.


# %%
def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """Encode the cells of a feature map.

    Returns:
        (height * width, channels), row by row.
    """

    def encode(count: int) -> Tensor:
        position = 2 * math.pi * torch.arange(1, count + 1) / (count + 1e-6)  # 2 pi at the last cell
        angle = position[:, None] / 10000 ** (torch.arange(0, channels // 2, 2) / (channels // 2))
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


model = result.detector.model
height, width = explanation.attention.grid.cells
channels = model.config.hidden_dim
positions = sine_positions(height, width, channels)
own = model.neck.positions(torch.zeros(1, height, width, dtype=torch.bool)).flatten(0, 2)
print(f"{height} x {width} cells, {channels} channels; difference from detrkit: {(positions - own).abs().max():.1e}")

# %% [markdown]
# Left: the encodings of a column of cells. They differ in the first half of the channels, mostly in the first ones, which
# have the shortest waves. Right: the similarity (cosine) of the encoding of one cell, the cross, with those of all cells.
# It falls with the distance.

# %%
normalized = positions / positions.norm(dim=1, keepdim=True)
figure, axes = plt.subplots(1, 4, figsize=(7.5, 1.9), width_ratios=[2, 1, 1, 1], layout="constrained")
axes[0].imshow(positions.unflatten(0, (height, width))[:, 0], aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
axes[0].set(title="encodings of a column", xlabel="channel", ylabel="row")
for axis, (row, column) in zip(axes[1:], [(1, 1), (height // 2, width // 2), (height - 2, 1)], strict=True):
    axis.imshow((normalized @ normalized[row * width + column]).unflatten(0, (height, width)))
    axis.plot(column, row, "r+", markersize=10)
    axis.set(title=f"row {row}, column {column}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## 3. Encoder: where does a cell look?
# Self-attention of the last encoder layer, mean of the heads, from four points (figure 3 of the paper). Every cell attends
# to all cells. In the paper's model, the cells of one object attend to each other; after this short training, this has only
# begun.

# %%
boxes = sample.annotations.boxes
centers = [tuple(map(float, center)) for center in (boxes[:, :2] + boxes[:, 2:])[:3] / 2]
explanation.figure("encoder", points=[*centers, (8.0, 8.0)])

# %% [markdown]
# The same numbers without the figure: attention weights of a cell are not negative, and their sum is 1.

# %%
attention = explanation.attention
token = attention.grid.token_at(*centers[0])
maps = attention.maps("encoder", layer=-1, queries=[token])  # (heads, 1, rows, columns)
maps.shape, maps.sum((-2, -1)).flatten()

# %%
figure, axes = plt.subplots(1, len(maps), figsize=(7.5, 1.2), layout="constrained")
for head, axis in enumerate(axes):
    axis.imshow(maps[head, 0])
    axis.set(title=f"head {head}", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## 4. Decoder: where does a query look?
# Cross-attention of the last decoder layer for each detection (figure 6 of the paper). In the paper's model, it is highest
# at the ends of an object, which determine its box.

# %%
explanation.figure("decoder")

# %% [markdown]
# One query in all decoder layers, with its box after each:

# %%
query = explanation.ranked_queries()[0]
explanation.figure("layers", queries=[query])

# %% [markdown]
# Queries attend to each other, too. This is how duplicates are avoided without non-maximum suppression: a query knows what
# the others have found. A row is a query, and its values sum to 1.

# %%
weights = attention.mean_weights("decoder_self", layer=-1)
figure, axis = plt.subplots(figsize=(3.4, 2.8), layout="constrained")
figure.colorbar(axis.imshow(weights, cmap="viridis", vmin=0), label="attention weight")
axis.set(xlabel="key: query", ylabel="query", xticks=range(len(weights)), yticks=range(len(weights)))
plt.show()

# %% [markdown]
# ## 5. Matching: which query is responsible for which object?
# The cost of a query for an object is the sum of three terms (equation 2 and appendix A.2): minus the probability of the
# object's class, 5 times the L1 distance of the boxes, and minus 2 times their GIoU. The Hungarian algorithm finds the
# assignment of one query to each object with the lowest total cost (equation 1).

# %%
predictions = attention.predictions
probabilities = predictions.class_logits[0].softmax(-1)
predicted = predictions.boxes[0]  # cxcywh, relative to the image
image_height, image_width = attention.grid.original
true = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([image_width, image_height, image_width, image_height])

cost_class = -probabilities[:, sample.annotations.labels]
cost_bbox = torch.cdist(predicted, true, p=1)
cost_giou = -generalized_box_iou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy"))
cost = cost_class + 5 * cost_bbox + 2 * cost_giou  # (queries, objects)
matched_queries, matched_objects = linear_sum_assignment(cost)
matched = list(zip(matched_queries.tolist(), matched_objects.tolist(), strict=True))

assert matched == [tuple(pair) for pair in explanation.matching.layer_pairs[-1]]
print(f"matched (query, object): {matched}")
print(f"largest difference of the costs from detrkit: {(cost - explanation.matching.cost).abs().max():.1e}")

# %%
names = [explanation.categories.names[label] for label in sample.annotations.labels]
terms = {"-probability": cost_class, "5 x L1": 5 * cost_bbox, "-2 x GIoU": 2 * cost_giou, "cost": cost}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.8), layout="constrained", sharey=True)
for axis, (title, values) in zip(axes, terms.items(), strict=True):
    axis.imshow(values.detach(), aspect="auto", cmap="viridis_r")
    for row, column in matched:
        axis.plot(column, row, "rx", markersize=6)
    axis.set(title=title, yticks=range(len(cost)))
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# The lighter a cell, the lower the cost; crosses mark the matched pairs. With the image:

# %%
explanation.figure("matching")

# %% [markdown]
# ## 6. The minimal DETR
# The whole model except for the backbone, with the names that the authors gave to the weights. Every sub-layer is
# normalised first (`pre_norm`), because `detr-tiny` is; the published models are normalised afterwards.


# %%
class Layer(nn.Module):
    """Self-attention, cross-attention in the decoder, and two linear layers; the input of each is added to its output."""

    def __init__(self, width: int, heads: int, hidden: int, in_decoder: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True) if in_decoder else None
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width) if in_decoder else None

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y + positions, y + positions, y)[0]
        if self.multihead_attn is not None:
            x = x + self.multihead_attn(self.norm2(x) + positions, keys, memory)[0]
        last_norm = self.norm2 if self.norm3 is None else self.norm3
        return x + self.linear2(self.linear1(last_norm(x)).relu())


class Stack(nn.Module):
    """Layers, and a norm after the last one."""

    def __init__(self, depth: int, *sizes: int, in_decoder: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(*sizes, in_decoder) for _ in range(depth))
        self.norm = nn.LayerNorm(sizes[0])

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *others)
        return self.norm(x)


class MinimalDETR(nn.Module):
    """Image -> features -> tokens -> memory -> queries -> classes and boxes."""

    def __init__(self, backbone: nn.Module, config: detrkit.ModelConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        sizes = (width, config.num_heads, config.dim_feedforward)
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)
        self.encoder = Stack(config.encoder_layers, *sizes, in_decoder=False)
        self.query_embed = nn.Embedding(config.num_queries, width)
        self.decoder = Stack(config.decoder_layers, *sizes, in_decoder=True)
        self.class_embed = nn.Linear(width, config.num_classes + 1)  # the last class is "no object"
        self.bbox_embed = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """From images (B, 3, H, W) to class logits (B, Q, K + 1) and boxes (B, Q, 4), cxcywh relative to the image."""
        features = self.input_proj(self.backbone(images)[-1])
        positions = sine_positions(*features.shape[-2:], features.shape[1])
        memory = self.encoder(features.flatten(2).transpose(1, 2), positions)
        queries = self.query_embed.weight.expand(len(images), -1, -1)
        states = self.decoder(torch.zeros_like(queries), queries, memory, memory + positions)
        return self.class_embed(states), self.bbox_embed(states).sigmoid()


# %% [markdown]
# `state_dict_as_official` returns the trained weights with the names of the authors' code. Only the backbone is detrkit's.

# %%
minimal = MinimalDETR(model.backbone, model.config)
weights = {
    name.replace("transformer.", "").replace("bbox_embed.layers.0", "bbox_embed.0")
    .replace("bbox_embed.layers.1", "bbox_embed.2").replace("bbox_embed.layers.2", "bbox_embed.4"): value
    for name, value in detrkit.state_dict_as_official(model).items()
    if not name.startswith("backbone.")
}  # fmt: skip
unused = minimal.load_state_dict(weights, strict=False).unexpected_keys
assert not unused

images = torch.randn(2, 3, 64, 96)
with torch.no_grad():
    logits, predicted = minimal.eval()(images)
    expected = model.eval()(images)
print(f"largest difference: logits {(logits - expected.class_logits).abs().max():.1e}, ", end="")
print(f"boxes {(predicted - expected.boxes).abs().max():.1e}")
assert torch.allclose(logits, expected.class_logits, atol=1e-4)

# %% [markdown]
# The rest of detrkit is what a model needs around it: losses, training, evaluation, batches of images of different sizes,
# and the successors of DETR. [How DETR sees](../docs/guides/how-detr-sees.md) explains the parts in words,
# [from the papers to the code](../docs/paper-map.md) leads from each equation to its function.
