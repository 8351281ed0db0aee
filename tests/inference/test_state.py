"""A `Detector` changes nothing of its model, always computes in eval mode, and is safe to share between threads."""

import copy
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.threads import mix_in_threads, small_detector, small_images
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import detrkit
from detrkit import CheckpointError, ConfigError, Detector, build_model
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from detrkit.structures import Target
from tests.datasets import write_coco
from tests.models.vit_models import SMALL as SMALL_VIT
from tests.parameters import slow_except

SMALL: dict[str, Any] = {
    "backbone": "resnet-tiny",
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
    "num_classes": 3,
    "hidden_dim": 64,
    "num_heads": 8,
    "dim_feedforward": 32,
}
CLASSES = ["circle", "square", "star"]


def families() -> dict[str, str]:
    """One preset for each combination of parts."""
    parts = {
        name: (config.encoder, config.decoder, config.queries, config.mask_head, config.num_feature_levels > 1)
        for name, config in PRESETS.items()
        if not config.is_hybrid or name in ("rtdetr-r18", "dfine-n")
    }
    return {str(key): name for name, key in reversed(parts.items())}


FAMILIES = sorted(families().values())


def in_training(name: str, **changes: Any) -> tuple[DETR, Detector]:
    """A model in the middle of training: some parts in eval mode, a hook, gradients; and its detector."""
    torch.manual_seed(0)
    is_vit = PRESETS[name].is_vit
    settings = {**(SMALL_VIT if is_vit else {**SMALL, "dropout": 0.5}), "num_classes": 3, **changes}
    model = build_model(name, **settings)
    model.train()
    model.backbone.eval()
    next(model.decoder.layers.children()).eval()
    next(model.parameters()).requires_grad_(False)
    model.heads.register_forward_hook(lambda module, inputs, output: None)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    return model, Detector.from_model(model, CLASSES if model.config.num_classes == 3 else None, image_size=64)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model and of torch that a prediction could change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    state: dict[str, Any] = {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        # not Python's, from which the checker of signatures draws
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
    }
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        state[name] = (plain, id(module), [list(getattr(module, hook).items()) for hook in hooks])
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                gradient = None if tensor.grad is None else tensor.grad.numpy().tobytes()
                state[f"{name}.{key}"] = (
                    id(tensor),
                    tensor.data_ptr(),
                    tensor._version,
                    tensor.requires_grad,
                    gradient,
                )
                state[f"{name}.{key} values"] = tensor.detach().numpy().tobytes()
                state[f"{name}.{key} format"] = tensor.stride()
    return state


def image(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def truth() -> detrkit.Annotations:
    return detrkit.Annotations(torch.tensor([[4.0, 4, 30, 30]]), torch.tensor([1]))


ACTIONS: dict[str, Callable[[Detector], object]] = {
    "predict": lambda detector: detector.predict(image(), 0.0),
    "predict several": lambda detector: detector.predict([image(), image(1, 64, 40)], 0.0, classes="star"),
    "stream": lambda detector: list(detector.stream(iter([image(), image(1)]), 0.0, batch_size=2, tiling=None)),
    "attention": lambda detector: detector.attention(image()).weights("decoder_self"),
    "explain": lambda detector: detrkit.explain(detector, image(), annotations=truth()),
    "threads": lambda detector: list(ThreadPoolExecutor(2).map(detector.predict, [image(), image(1)])),
}


@pytest.mark.parametrize("name", slow_except(("detr-r50", "dfine-n"), FAMILIES))
def test_predicting_changes_nothing_of_a_model_in_training(name: str) -> None:
    model, detector = in_training(name)
    before = state_of(model)
    for action, run in ACTIONS.items():
        run(detector)
        assert state_of(model) == before, action
    if model.config.mask_head:
        detector.predict_segments(image())
        assert state_of(model) == before


def test_evaluating_changes_nothing_of_a_model_in_training(tmp_path: Path) -> None:
    model, detector = in_training("detr-tiny", num_classes=2)
    data = detrkit.load_dataset(write_coco(tmp_path))
    detector.categories = data.categories
    before = state_of(model)
    detrkit.evaluate(detector, data, split="val", workers=0)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["detr-tiny", "detrkit-s"])
def test_predictions_between_optimizer_steps_are_those_of_a_model_in_eval_mode(name: str) -> None:
    model, detector = in_training(name)
    criterion = detrkit.SetCriterion(3, class_scores=model.config.class_scores)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 1e-3)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([1]))]
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(torch.randn(1, 3, 64, 64)), targets).total.backward()
        optimizer.step()
        found = detector.predict(image(), 0.0)
        expected = Detector.from_model(copy.deepcopy(model).eval(), CLASSES, image_size=64).predict(image(), 0.0)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.boxes, expected.boxes)


def first_convolution(model: DETR) -> nn.Conv2d:
    return next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))


def replace_backbone(model: DETR) -> None:
    torch.manual_seed(5)
    model.backbone = build_model("detr-tiny", **SMALL).backbone  # type: ignore[assignment]


def load_other_weights(model: DETR) -> None:
    torch.manual_seed(5)
    model.load_state_dict(build_model("detr-tiny", **SMALL).state_dict(), assign=True)


def under_no_grad(change: Callable[[Tensor], object]) -> Callable[[DETR], None]:
    def run(model: DETR) -> None:
        with torch.no_grad():
            change(first_convolution(model).weight)

    return run


CHANGES: dict[str, Callable[[DETR], object]] = {
    "in place": under_no_grad(lambda weight: weight.mul_(1.5)),
    "through .data, which autograd does not see": lambda model: first_convolution(model).weight.data.mul_(1.5),
    "signs through numpy": under_no_grad(lambda weight: np.negative(weight.numpy(), out=weight.numpy())),
    "an assigned .data": lambda model: setattr(
        first_convolution(model).weight, "data", first_convolution(model).weight.detach() * 1.5
    ),
    "a new parameter": lambda model: setattr(
        first_convolution(model), "weight", nn.Parameter(first_convolution(model).weight.detach() * 1.5)
    ),
    "loaded with assign=True": load_other_weights,
    "a new backbone": replace_backbone,
    "statistics of a norm": lambda model: [
        buffer.data.add_(0.5) for name, buffer in model.backbone.named_buffers() if name.endswith("running_var")
    ],
    "pruning": lambda model: prune.l1_unstructured(first_convolution(model), "weight", amount=0.5),
    "a parametrization": lambda model: parametrize.register_parametrization(
        first_convolution(model), "weight", nn.Tanh()
    ),
    "a weight of the decoder": lambda model: model.query_source.weight.data.mul_(2),
    "a hook": lambda model: first_convolution(model).register_forward_hook(lambda module, inputs, output: output * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_weights_take_effect_at_the_next_prediction(change: str) -> None:
    torch.manual_seed(0)
    model = build_model("detr-tiny", **SMALL).eval()
    detector = Detector.from_model(model, CLASSES, image_size=64)
    before = detector.predict(image(), 0.0)
    CHANGES[change](model)
    after = detector.predict(image(), 0.0)
    expected = Detector.from_model(model, CLASSES, image_size=64).predict(image(), 0.0)
    assert torch.equal(after.scores, expected.scores)
    assert not torch.equal(after.scores, before.scores)


def test_recordings_are_not_changed_by_later_training() -> None:
    model, detector = in_training("detr-r50-panoptic", num_classes=3)
    attention, explanation = detector.attention(image()), detrkit.explain(detector, image())
    assert explanation.masks is not None

    def values() -> list[Tensor]:
        weights = [one.weights("decoder_cross") for one in (attention, explanation.attention)]
        return [*weights, explanation.masks.probabilities([0]), attention.predictions.masks]  # type: ignore[union-attr, list-item]

    before = values()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert all(torch.equal(first, second) for first, second in zip(before, values(), strict=True))


def test_hooks_of_the_user_run_while_predicting() -> None:
    model, detector = in_training("detr-tiny")
    seen: list[bool] = []
    handle = model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    detector.predict(image())
    detector.attention(image())
    assert seen == [False, False]
    handle.remove()
    detector.predict(image())
    assert len(seen) == 2


@pytest.mark.parametrize("autocast", [False, True])
def test_a_prediction_inside_a_training_loop_of_mixed_precision_is_exact_and_leaves_gradients_possible(
    autocast: bool,
) -> None:
    model, detector = in_training("detr-tiny")
    expected = detector.predict(image(), 0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = detector.predict(image(), 0.0)
        detector.attention(image())
        model(torch.randn(1, 3, 64, 64)).layer_boxes.sum().backward()
    assert torch.equal(found.scores, expected.scores)


def test_eight_threads_that_predict_record_and_explain_see_what_each_sees_alone() -> None:
    """`benchmarks/threads.py` runs this for a minute."""
    result = mix_in_threads(small_detector(), small_images(), rounds=4)
    assert result.num_calls == 8 * 4
    assert result.differences == []


def test_threads_may_predict_while_another_one_trains() -> None:
    """Predictions are finite and the modes of the model stay those of training."""
    model, detector = in_training("detr-tiny")
    before = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 1e-5)

    def train() -> None:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(1, 3, 64, 64)).layer_boxes.sum().backward()
            optimizer.step()

    with ThreadPoolExecutor(4) as pool:
        training = pool.submit(train)
        results = list(pool.map(lambda seed: detector.predict(image(seed), 0.0), range(12)))
        training.result()
    assert all(bool(one.boxes.isfinite().all()) for one in results)
    assert [module.training for module in model.modules()] == before


def test_a_shared_pillow_file_is_decoded_once(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(image(0, 300, 400)).save(tmp_path / "a.jpg")
    detector = small_detector()
    for _ in range(5):
        with Image.open(tmp_path / "a.jpg") as opened, ThreadPoolExecutor(8) as pool:
            first, *others = pool.map(lambda one: detector.predict(one, 0.0), [opened] * 8)
        assert all(torch.equal(first.scores, other.scores) for other in others)


@pytest.mark.parametrize("precision", ["half", "float16", "fp32", "int8", None, 16, torch.float16])
def test_unknown_precisions_are_refused_with_those_that_exist(precision: Any) -> None:
    from detrkit.inference.engines.torch import check_precision

    with pytest.raises(ConfigError, match=r"is not a precision to predict in; use one of auto, float32, bfloat16"):
        check_precision(precision)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda model: model.half(), "found weights of type float16, expected float32"),
        (lambda model: model.bfloat16(), "found weights of type bfloat16, expected float32"),
        (lambda model: model.double(), "found weights of type float64, expected float32"),
        (lambda model: model.backbone.half(), "found weights of type float16, float32, expected float32"),
        (lambda model: model.to("meta"), "found weights on meta"),
        (lambda model: model.decoder.to("meta"), "found weights on cpu, meta"),
    ],
)
@pytest.mark.parametrize("action", ["predict", "attention", "explain"])
def test_models_that_were_converted_are_refused(convert: Callable[[DETR], object], message: str, action: str) -> None:
    model, detector = in_training("detr-tiny")
    convert(model)
    with pytest.raises(ConfigError, match=message):
        ACTIONS[action](detector)


def test_half_and_other_devices_are_sentences() -> None:
    detector = small_detector()
    with pytest.raises(ConfigError, match=r"weights stay float32, found float16; .* precision='bfloat16'"):
        detector.half()
    assert detector.to("cpu") is detector
    assert detector.to(torch.device("cpu")) is detector
    with pytest.raises(ConfigError, match="is not a device"):
        detector.to("gpu")
    with pytest.raises(ConfigError, match="computes nothing"):
        detector.to("meta")
    with pytest.raises(ConfigError, match="is not a device"):
        Detector.from_model(build_model("detr-tiny", num_classes=3), device="tpu:0")
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:3", 0):
            with pytest.raises(ConfigError, match=r"is not (available|a device)"):
                detector.to(device)


def test_a_detector_moves_without_moving_the_model_it_was_made_of() -> None:
    model, detector = in_training("detr-tiny")
    engine = detector.engine.to(torch.device("meta"))  # type: ignore[union-attr]  # a device that is always there
    assert {parameter.device.type for parameter in engine.model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_detectors_are_pickled_and_copied(duplicate: Callable[[Detector], Detector]) -> None:
    detector = small_detector()
    expected = detector.predict(image(), 0.0)
    other = duplicate(detector)
    found = other.predict(image(), 0.0)
    assert torch.equal(found.scores, expected.scores)
    assert found.class_names == expected.class_names
    assert other.categories == detector.categories
    pairs = itertools.product(other.model.parameters(), detector.model.parameters())
    assert not any(first.data_ptr() == second.data_ptr() for first, second in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_detectors_of_exported_files_are_pickled_with_their_path(format: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime" if format == "onnx" else "torch")
    folder = tmp_path / "model"
    small_detector().save_pretrained(folder)
    path = Path(detrkit.export(folder, format, output=tmp_path / f"m{'.onnx' if format == 'onnx' else '.pt2'}").path)
    detector = Detector.load(path)
    expected = detector.predict(image(), 0.0)
    content = pickle.dumps(detector)
    assert torch.equal(pickle.loads(content).predict(image(), 0.0).scores, expected.scores)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such exported model"):
        pickle.loads(content)
