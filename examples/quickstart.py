# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Quickstart
# Train a detector on drawn shapes, evaluate it, look at its predictions, explain one of them, and export the model.
# Neither data nor a network is needed. It takes about four minutes of processor time.
#
# The last step needs an extra: `uv pip install 'detrkit[export]'`.

# %%
import os

from PIL import Image

import detrkit
from detrkit.data.synthetic import SyntheticShapes

SHORT = os.environ.get("DETRKIT_SHORT") == "1"  # tests set it: few images and one epoch, so scores are near 0


def side_by_side(images: list[Image.Image], size: int = 256) -> Image.Image:
    """Join images, each resized to `size` x `size` pixels."""
    joined = Image.new("RGB", (len(images) * (size + 8) - 8, size), "white")
    for number, image in enumerate(images):
        joined.paste(image.resize((size, size), Image.Resampling.LANCZOS), (number * (size + 8), 0))
    return joined


# %% [markdown]
# ## 1. Images
# `SyntheticShapes` draws circles, squares and triangles with exact boxes, the same images for the same seed. The images
# of the second dataset are not trained on.

# %%
train_images = SyntheticShapes(24 if SHORT else 1500, seed=0)
val_images = SyntheticShapes(8 if SHORT else 100, seed=1)
side_by_side([Image.fromarray(val_images[index].image.permute(1, 2, 0).numpy()) for index in range(4)])

# %% [markdown]
# Images of your own are a folder in COCO, YOLO or Pascal VOC format: `detrkit.train("photos")`. The notebook
# `own_dataset` shows this. Any `torch.utils.data.Dataset` of `(image, target)` works, too.

# %% [markdown]
# ## 2. Train
# Settings that are not given are chosen from the model and the data: `result.config` has all of them. Four epochs are
# short; `detrkit demo` trains on more images, and AP is higher.

# %%
result = detrkit.train(
    train_images, val=val_images, epochs=1 if SHORT else 4, image_size=128, batch_size=16, output="runs/shapes"
)
result

# %% [markdown]
# ## 3. Evaluate
# These are the COCO metrics of the best checkpoint. `scores.to_html("report.html")` writes the report with curves,
# errors and pictures.

# %%
scores = detrkit.evaluate("runs/shapes", val_images)
scores

# %%
for one in scores.per_class:
    print(f"{one.name}: AP {one.ap:.3f}")

# %% [markdown]
# ## 4. Look at predictions
# A `Detector` takes paths, Pillow images, arrays and tensors. The threshold `"auto"` uses the scores with the highest F1
# on the validation images.

# %%
detector = detrkit.Detector.load("runs/shapes")
threshold = 0.05 if SHORT else "auto"
predictions = [detector.predict(val_images[index].image, threshold=threshold) for index in range(4)]
side_by_side([found.scale(2).draw(found.image.resize((256, 256))) for found in predictions])

# %%
for one in predictions[0]:
    print(f"{one.class_name} {one.score:.2f} at {[round(value) for value in one.box]}")

# %% [markdown]
# ## 5. Explain one image
# The figure shows where the query of each detection looked in the last decoder layer. With annotations, an explanation
# also knows the matching, the losses and why an object was missed.

# %%
sample = val_images[0]
explanation = detrkit.explain(detector, sample.image, annotations=sample.annotations, threshold=threshold)
explanation

# %%
for outcome in explanation.matching.outcomes:
    name = explanation.categories.names[outcome.label]
    print(f"{name}: query {outcome.matched_query}, IoU of the best box {outcome.best_iou:.2f}")
for missed in explanation.missed_objects():
    print(f"object {missed.object} is missed: {missed.reason}")

# %% [markdown]
# `explanation.to_html("explained.html")` writes all of this as an interactive page.

# %% [markdown]
# ## 6. Export to ONNX
# The file is compared with PyTorch before it is kept: `max_difference` is that of logits and boxes.

# %%
exported = detrkit.export("runs/shapes", "onnx", output="shapes.onnx")
exported

# %%
for one in detrkit.Detector.load("shapes.onnx").predict(sample.image, threshold=threshold):
    print(f"{one.class_name} {one.score:.2f} at {[round(value) for value in one.box]}")

# %% [markdown]
# Next: `own_dataset` trains on a folder of images, `look_inside` follows an image through the model.
