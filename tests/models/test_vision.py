"""Encoders of images, and two towers that meet: the same answers as transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_gradients, assert_parity, assert_states, randomised, states

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.config import ModelConfig, TwoTowerConfig
from lmworks.models.load import load_language_model, load_model
from lmworks.models.save import save_model
from lmworks.models.two_tower import TwoTower
from lmworks.training.optimizers.base import matrices_and_rest

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = SIZES | {"image_size": 14, "patch_size": 4, "num_channels": 3}
VIT: dict[str, tuple[str, dict[str, Any]]] = {
    "bare": ("ViTModel", IMAGES),
    "classes": ("ViTForImageClassification", IMAGES | {"num_labels": 5}),
    "no bias, grey": (
        "ViTForImageClassification",
        IMAGES | {"qkv_bias": False, "num_channels": 1, "hidden_act": "relu"},
    ),
}


def pixels(channels: int = 3, size: int = 14) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VIT)
def test_vit(name: str, tmp_path: Path) -> None:
    kind, settings = VIT[name]
    torch.manual_seed(0)
    theirs = randomised(getattr(transformers, kind)(transformers.ViTConfig(**settings)))
    again = copy.deepcopy(theirs)
    images = pixels(settings["num_channels"])
    ours = assert_parity(
        theirs, tmp_path / "theirs", images, num_greedy=0, input_name="pixel_values"
    )
    save_model(ours, tmp_path / "ours", model_type="vit")
    assert load_model(tmp_path / "ours").config == ours.config
    read = getattr(transformers, kind).from_pretrained(tmp_path / "ours", dtype=torch.float32)
    with torch.no_grad():
        wanted, got = again(images), read.eval()(images)
    key = "logits" if "logits" in wanted else "last_hidden_state"
    assert (wanted[key] - got[key]).abs().max() < 1e-5


TEXT = SIZES | {"vocab_size": 97, "max_position_embeddings": 20}
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": (
        "CLIP",
        {
            "text_config": TEXT | {"hidden_size": 32, "eos_token_id": 90},
            "vision_config": IMAGES,
            "projection_dim": 12,
        },
    ),
    "clip whose end is the largest id": (
        "CLIP",
        {
            "text_config": TEXT | {"eos_token_id": 2, "hidden_act": "gelu"},
            "vision_config": IMAGES | {"hidden_act": "gelu"},
            "projection_dim": 12,
        },
    ),
    "siglip": ("Siglip", {"text_config": TEXT, "vision_config": IMAGES}),
    "siglip projected": (
        "Siglip",
        {"text_config": TEXT | {"projection_size": 24, "hidden_size": 32}, "vision_config": IMAGES},
    ),
}


def random_towers(name: str) -> Any:
    family, settings = TOWERS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    return randomised(getattr(transformers, f"{family}Model")(config))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts that end in the token 90, the largest id, and their masks."""
    ids = torch.randint(3, 90, (4, 20), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([20, 13, 6, 2])
    ids[torch.arange(4), lengths - 1] = 90
    return ids, (torch.arange(20) < lengths[:, None]).long()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", TOWERS)
def test_two_towers(name: str, masked: bool, tmp_path: Path) -> None:
    theirs = random_towers(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert isinstance(ours, TwoTower)
    text_states, image_states = states(ours.text), states(ours.vision)
    ids, mask = texts()
    given = {"attention_mask": mask} if masked else {}
    scores = ours(ids, pixels(), **given)
    expected = theirs(input_ids=ids, pixel_values=pixels(), **given)
    assert expected.logits_per_text.std() > 0.05
    assert (scores - expected.logits_per_text).abs().max() < 1e-4
    assert (ours.embed_texts(ids, **given) - expected.text_embeds).abs().max() < 1e-5
    assert (ours.embed_images(pixels()) - expected.image_embeds).abs().max() < 1e-5
    real = (mask if masked else torch.ones_like(mask))[..., None]
    vision = theirs.vision_model(pixels(), output_hidden_states=True).hidden_states
    text = theirs.text_model(ids, output_hidden_states=True, **given).hidden_states
    assert_states(ours.vision, image_states, vision, torch.ones(1))
    assert_states(ours.text, text_states, text, real)
    assert_gradients(theirs, ours, tmp_path / "theirs", expected.logits_per_text, scores)


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_they_are_kept_in_our_own_folder(name: str, tmp_path: Path) -> None:
    random_towers(name).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    ids, _ = texts()
    assert torch.equal(again(ids, pixels()), ours(ids, pixels()))
    assert "vision: layers | 2" in (tmp_path / "ours" / "README.md").read_text()


def test_fresh_weights_are_reproducible(tmp_path: Path) -> None:
    random_towers("siglip").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    drawn = []
    for _ in range(2):
        ours.reset_parameters(torch.Generator().manual_seed(7))
        drawn.append({name: value.clone() for name, value in ours.state_dict().items()})
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert drawn[0]["logit_bias"] == -10
    for name, value in drawn[0].items():
        assert value.dim() < 2 or value.std() < 0.03, name


def test_what_an_optimizer_may_treat_as_a_matrix(tmp_path: Path) -> None:
    random_towers("siglip").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    matrices, embeddings, _ = matrices_and_rest(ours)
    assert [names[id(table)] for table in embeddings] == ["text.embed_tokens.weight"]
    found = {names[id(matrix)] for matrix in matrices}
    assert not any("embed" in name for name in found), found
    assert "vision.head.pooler.q_proj.weight" in found


def test_sizes_that_configs_leave_out() -> None:
    """The published CLIP names only what is not the default."""
    layout = architecture("clip").layout("hf")
    values = {
        "projection_dim": 512,
        "text_config": {"eos_token_id": 2},
        "text_config_dict": None,
        "vision_config_dict": {"patch_size": 16},
    }
    ours = layout.read_config(values)
    wanted = transformers.CLIPConfig(text_config={}, vision_config={"patch_size": 16})
    assert ours.text.vocab_size == wanted.text_config.vocab_size
    for tower, theirs in ((ours.text, wanted.text_config), (ours.vision, wanted.vision_config)):
        assert tower.hidden_size == theirs.hidden_size
        assert tower.num_hidden_layers == theirs.num_hidden_layers
        assert tower.layers[0].mixer.num_attention_heads == theirs.num_attention_heads
        assert tower.layers[0].feed_forward.intermediate_size == theirs.intermediate_size
    assert ours.vision.max_position_embeddings == 197
    siglip = architecture("siglip").layout("hf").read_config({})
    theirs = transformers.SiglipConfig()
    assert siglip.text.hidden_size == theirs.text_config.hidden_size
    assert siglip.vision.inputs.patch_size == theirs.vision_config.patch_size


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("vit", {"architectures": ["ViTForMaskedImageModeling"]}, "MaskedImage"),
        ("vit", {"patch_size": 15}, "patch_size 15 is above image_size 14"),
        ("vit", {"image_size": [14, 14]}, "image_size must be a whole number"),
        ("vit", {"hidden_size": 25}, "multiple"),
        ("clip", {"text_config": 3}, "text_config must be an object"),
        ("clip", {"projection_dim": 0}, "size must be"),
        ("siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head"),
        ("siglip", {"text_config": {"projection_size": 5}}, "one size, not 5 and 768"),
    ],
)
def test_configs_that_do_not_fit(name: str, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        architecture(name).layout("hf").read_config({**IMAGES, **changes})


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    random_towers("clip").save_pretrained(tmp_path)
    model = load_model(tmp_path)
    for wrong in (pixels(size=15), pixels(channels=1), pixels()[0], torch.zeros(2, 5)):
        with pytest.raises(UserError, match=r"the model reads \(any number, 3, 14, 14\)"):
            model.embed_images(wrong)
    with pytest.raises(UserError, match="holds two towers"):
        load_language_model(tmp_path)


def test_towers_that_do_not_meet(tmp_path: Path) -> None:
    random_towers("clip").save_pretrained(tmp_path)
    config = load_model(tmp_path).config
    assert isinstance(config, TwoTowerConfig) and isinstance(config.text, ModelConfig)
    with pytest.raises(UserError, match="reads token ids"):
        TwoTowerConfig(text=config.text, vision=config.text)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"projection_dim": 13}))
    with pytest.raises(UserError, match="of a wrong shape"):
        load_model(tmp_path)
