"""Builders of timm, torchvision and transformers image models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from kdkit.errors import ConfigError
from kdkit.models import hf_image_classifier, timm_model, torchvision_model
from kdkit.models._build import origin_of

VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4}


def test_timm_takes_options_of_a_recipe() -> None:
    options = OmegaConf.create({"channels": [4, 8, 16, 32]})
    network = timm_model("resnet18", num_classes=7, in_chans=1, **options)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    origin = origin_of(network)
    assert origin is not None
    assert origin.arguments == {"channels": [4, 8, 16, 32], "in_chans": 1}
    assert type(origin.arguments["channels"]) is list
    assert origin.mean is None  # fresh weights expect nothing


def test_timm_weight_tag() -> None:
    origin = origin_of(timm_model("resnet18.a1_in1k", num_classes=2, channels=[4, 4, 4, 4]))
    assert origin is not None
    assert origin.architecture == "resnet18"


def test_timm_from_an_exported_folder(tmp_path: Path) -> None:
    from kdkit.data._base import ImageSpec
    from kdkit.models import export_student
    from kdkit.tasks import Classification

    spec = ImageSpec(7, 1, 32, (0.5,), (0.25,))
    task = Classification(spec)
    first = task.wrap(timm_model("resnet18", num_classes=7, in_chans=1, channels=[4, 8, 8, 8])).eval()
    image = torch.rand(2, 1, 32, 32)
    export_student(first, tmp_path / "s", spec=spec, example={"image": image})
    again = task.wrap(timm_model(f"local-dir:{tmp_path / 's'}", num_classes=7, in_chans=1, pretrained=True)).eval()
    assert again.mean.flatten().tolist() == [0.5]
    torch.testing.assert_close(again({"image": image}).logits, first({"image": image}).logits)
    export_student(again, tmp_path / "t", spec=spec, example={"image": image})


def test_timm_refusals() -> None:
    with pytest.raises(ConfigError, match=r"timm has no model 'resnet81'; did you mean 'resnet18'"):
        timm_model("resnet81", num_classes=2)
    with pytest.raises(ConfigError, match=r"timm model 'resnet18' can not be built: .*chanels"):
        timm_model("resnet18", num_classes=2, chanels=[4, 4, 4, 4])


def test_timm_weights_that_can_not_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def fail(*args: object, **kwargs: object) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ConfigError, match=r"weights of timm model 'resnet18' can not be read \(no route to host\); set"
    ):
        timm_model("resnet18", num_classes=2, pretrained=True)


def test_torchvision() -> None:
    network = torchvision_model("shufflenet_v2_x0_5", num_classes=7, in_chans=1)
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    origin = origin_of(network)
    assert origin is not None
    assert (origin.library, origin.mean) == ("torchvision", None)


def test_torchvision_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models as zoo

    def get_model(name: str, weights: object = None, **options: object) -> nn.Module:
        assert weights is not None
        return zoo.shufflenet_v2_x0_5(num_classes=1000)

    monkeypatch.setattr(zoo, "get_model", get_model)
    network = torchvision_model("shufflenet_v2_x0_5", num_classes=7, weights="IMAGENET1K_V1")
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    origin = origin_of(network)
    assert origin is not None
    assert origin.mean == pytest.approx((0.485, 0.456, 0.406))


def test_torchvision_refusals() -> None:
    with pytest.raises(
        ConfigError, match=r"torchvision has no classification model 'resnet81'; did you mean 'resnet18'"
    ):
        torchvision_model("resnet81", num_classes=2)
    with pytest.raises(
        ConfigError, match=r"torchvision model 'resnet18' has no weights 'IMAGENET_V1'; did you mean 'IMAG"
    ):
        torchvision_model("resnet18", num_classes=2, weights="IMAGENET_V1")
    with pytest.raises(ConfigError, match=r"weights='DEFAULT' needs images of 3 channels, got in_chans=1"):
        torchvision_model("resnet18", num_classes=2, in_chans=1, weights="DEFAULT")
    with pytest.raises(ConfigError, match=r"torchvision model 'resnet18' can not be built: .*no_such"):
        torchvision_model("resnet18", num_classes=2, no_such=1)


def test_hf_image_classifier() -> None:
    network = hf_image_classifier(model_type="vit", num_classes=7, in_chans=1, image_size=8, **VIT)
    assert network(torch.randn(2, 1, 8, 8)).logits.shape == (2, 7)


def test_hf_image_classifier_from_a_folder(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    network = hf_image_classifier(model_type="vit", num_classes=7, in_chans=3, image_size=8, **VIT)
    network.save_pretrained(tmp_path)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    again = hf_image_classifier(pretrained=str(tmp_path), num_classes=7)
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(again.eval()(image).logits, network.eval()(image).logits)
    origin = origin_of(again)
    assert origin is not None
    assert origin.mean == (0.1, 0.2, 0.3)


def test_hf_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give pretrained .* or model_type .*, not both or none"):
        hf_image_classifier(num_classes=2)
    with pytest.raises(ConfigError, match=r"transformers has no image classifier of type 'vitt'; did you mean 'vit'"):
        hf_image_classifier(model_type="vitt", num_classes=2)
    with pytest.raises(ConfigError, match=r"model type 'vit' has no setting 'hiden_size'; did you mean 'hidden_size'"):
        hf_image_classifier(model_type="vit", num_classes=2, hiden_size=8)
    with pytest.raises(ConfigError, match=r"image classifier '.*nowhere' can not be loaded"):
        hf_image_classifier(pretrained=str(tmp_path / "nowhere"), num_classes=2)
