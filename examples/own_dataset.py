# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your own dataset
# From a folder of annotated images to a detector: check the annotations, correct them, train, read the report, predict.
#
# The notebook makes its own folder, with the layout of the public dataset
# [BCCD](https://github.com/Shenggan/BCCD_Dataset) (blood cells, Pascal VOC format), so it needs no download. With a
# folder of your own, set `folder` to its path and skip section 1. It takes about two minutes of processor time.

# %%
import json
import os
import random
import re
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image, ImageDraw, ImageFilter

import detrkit

SHORT = os.environ.get("DETRKIT_SHORT") == "1"  # tests set it: few images and one epoch, so scores are near 0

# %% [markdown]
# ## 1. A folder in Pascal VOC format
# ```
# cells/JPEGImages/1.jpg          an image
# cells/Annotations/1.xml         its objects: class names and boxes
# cells/ImageSets/Main/train.txt  names of the training images, also val.txt
# ```
# The images are drawn: red cells (`RBC`), fewer white cells with a violet nucleus (`WBC`), and small `Platelets`.

# %%
COUNTS = {"RBC": (5, 10), "WBC": (0, 2), "Platelets": (0, 3)}  # fewest and most in an image
RADII = {"RBC": (17, 22), "WBC": (26, 34), "Platelets": (5, 8)}  # pixels


def draw_cell(image: Image.Image, name: str, box: tuple[int, int, int, int], rng: random.Random) -> None:
    """Draw a cell into an image."""
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = box
    shade, width = rng.randint(-12, 12), right - left
    if name == "RBC":  # paler in the middle
        pen.ellipse(box, fill=(206 + shade, 142 + shade, 150 + shade))
        inner = width // 3
        pen.ellipse((left + inner, top + inner, right - inner, bottom - inner), fill=(224, 178, 182))
    elif name == "WBC":  # a nucleus of three lobes
        pen.ellipse(box, fill=(196 + shade, 178 + shade, 205))
        for _ in range(3):
            x, y = left + rng.uniform(0.2, 0.45) * width, top + rng.uniform(0.2, 0.45) * width
            pen.ellipse((x, y, x + 0.36 * width, y + 0.36 * width), fill=(112, 66, 150))
    else:
        pen.ellipse(box, fill=(150 + shade, 98, 168))


def draw_image(rng: random.Random, size: tuple[int, int] = (320, 240)) -> tuple[Image.Image, list[tuple[str, tuple]]]:
    """Draw an image; return it with the class name and box of each cell."""
    image = Image.new("RGB", size, (236, 222, 214))
    cells: list[tuple[str, tuple]] = []
    for name in ("WBC", "RBC", "Platelets"):
        for _ in range(rng.randint(*COUNTS[name])):
            radius = rng.randint(*RADII[name])
            x, y = rng.randint(radius + 1, size[0] - radius - 2), rng.randint(radius + 1, size[1] - radius - 2)
            box = (x - radius, y - radius, x + radius, y + radius)
            if all(box[0] > b[2] - 4 or box[2] < b[0] + 4 or box[1] > b[3] - 4 or box[3] < b[1] + 4 for _, b in cells):
                draw_cell(image, name, box, rng)
                cells.append((name, box))
    return image.filter(ImageFilter.GaussianBlur(0.8)), cells


def write_voc(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write images, annotations and the list of each split."""
    rng = random.Random(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = iter(range(1, sum(counts.values()) + 1))
    for split, count in counts.items():
        chosen = [str(next(names)) for _ in range(count)]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen) + "\n", "utf-8")
        for name in chosen:
            image, cells = draw_image(rng)
            image.save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
            (folder / "Annotations" / f"{name}.xml").write_text(annotation(f"{name}.jpg", image.size, cells), "utf-8")


def annotation(file_name: str, size: tuple[int, int], cells: list[tuple[str, tuple]]) -> str:
    """Return the content of an XML file; Pascal VOC counts pixels from 1."""
    lines = [f"<filename>{file_name}</filename>", f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for name, box in cells:
        corners = "".join(
            f"<{key}>{value + 1}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        lines.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
    return "<annotation>\n" + "\n".join(lines) + "\n</annotation>\n"


folder = Path("cells")
write_voc(folder, {"train": 16, "val": 4} if SHORT else {"train": 160, "val": 40})
Image.open(folder / "JPEGImages" / "1.jpg").resize((640, 480))

# %% [markdown]
# Annotations that people make have errors. These two are typical: a class name with a typing error, and a box of width 0.


# %%
def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace the first match in a file."""
    path.write_text(re.sub(pattern, replacement, path.read_text("utf-8"), count=1), "utf-8")


edit(folder / "Annotations" / "1.xml", "<name>RBC", "<name>RCB")
edit(folder / "Annotations" / "2.xml", r"<xmin>(\d+)(.*?)<xmax>\d+", r"<xmin>\1\2<xmax>\1")

# %% [markdown]
# ## 2. Check the dataset
# `examine` is the command `detrkit doctor`. It reads everything and lists what would harm training, with the first place
# and what to do.

# %%
report = detrkit.examine(folder)
report

# %% [markdown]
# The class `RCB` has one object: it is a typing error. Boxes without area are left out in training. Correct the file by
# hand; `detrkit doctor cells --fix fixed` writes a copy without what cannot be used.

# %%
edit(folder / "Annotations" / "1.xml", "<name>RCB", "<name>RBC")
report = detrkit.examine(folder)
report

# %% [markdown]
# ## 3. Train
# Cells have no up direction, so images may also be flipped vertically. Six epochs are short: afterwards, some cells are
# still missed or found twice. The notebook trains from random weights. With photographs, start from ImageNet weights or
# from published ones: [fine-tune](../docs/guides/training.md) says how, and
# [blood cells](../docs/guides/blood-cells.md) shows it on BCCD.

# %%
result = detrkit.train(folder, epochs=1 if SHORT else 6, image_size=240, vertical_flip=0.5, output="runs/cells")
result

# %% [markdown]
# ## 4. Read the report
# `runs/cells/report.html` is a page with curves, scores by class, thresholds, kinds of errors and pictures; open it in a
# browser. `evaluate` computes the same for any split and returns the values.

# %%
scores = detrkit.evaluate("runs/cells", folder, split="val")
scores

# %%
for one in scores.per_class:
    print(f"{one.name}: {one.num_objects} objects, AP {one.ap:.3f}")

# %% [markdown]
# The curves are drawn from `metrics.jsonl`, which has a line of losses per epoch and of metrics per evaluation.

# %%
lines = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text("utf-8").splitlines()]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
train = [line for line in lines if line["kind"] == "train"]
left.plot([line["step"] for line in train], [line["loss"] for line in train])
left.set(xlabel="step", ylabel="loss", ylim=(0, None))
evaluations = [line for line in lines if line["kind"] == "evaluation"]
for name in ("ap", "ap50"):
    right.plot([line["step"] for line in evaluations], [line[name] for line in evaluations], marker=".", label=name)
right.set(xlabel="step", ylabel="on validation images", ylim=(0, 1))
right.legend()
plt.show()

# %% [markdown]
# Which classes are confused, at the threshold with the highest F1: a row is an annotated class, a column a detected one.
# The column `background` counts missed objects, the row `background` detections where there is no object.

# %%
confusion = scores.to_json()["confusion_matrix"]
names = confusion["class_names"]
figure, axis = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
shares = [[count / max(1, sum(counts)) for count in counts] for counts in confusion["counts"]]
axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
for row, counts in enumerate(confusion["counts"]):
    for column, count in enumerate(counts):
        axis.text(column, row, count, ha="center", va="center", color="white" if shares[row][column] > 0.5 else "black")
axis.set(xlabel="detected", ylabel="annotated")
axis.set_xticks(range(len(names)), names)
axis.set_yticks(range(len(names)), names)
plt.show()

# %% [markdown]
# ## 5. Predict
# `predict` takes one image or several. `detections.to_json()`, `.to_coco()`, `.to_yolo()` and `.to_pandas()` convert what
# was found; `detrkit.predict_files` writes the detections of a whole folder.

# %%
detector = detrkit.Detector.load("runs/cells")
names = (folder / "ImageSets" / "Main" / "val.txt").read_text("utf-8").split()[:4]
predictions = detector.predict([folder / "JPEGImages" / f"{name}.jpg" for name in names], threshold="auto")
sheet = Image.new("RGB", (1288, 968), "white")
for number, detections in enumerate(predictions):
    enlarged = detections.image.resize((640, 480), Image.Resampling.LANCZOS)
    sheet.paste(detections.scale(2).draw(enlarged), (number % 2 * 648, number // 2 * 488))
sheet

# %%
for name, detections in zip(names, predictions, strict=True):
    found = {one.name: len(detections.filter(classes=[one.name])) for one in report.classes}
    print(f"{name}.jpg: {found}")
