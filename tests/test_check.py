"""What is refused before any data or network is loaded, and in which words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kdkit._config.check import prepare
from kdkit._config.compose import Composer, unlocked
from kdkit._config.context import Context
from kdkit._config.links import link_settings
from kdkit._config.methods import method_configs, method_losses, seed_list
from kdkit._config.recipes import recipes_dir
from kdkit._config.safety import typed_trust, verify_hydra
from kdkit._config.trust import locate, trusting
from kdkit.errors import ConfigError

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a recipe of the user's; returns the folder for ``--config-dir``."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / "mine" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return tmp_path / "mine"

    return write


def context(*overrides: str, folder: Path | None = None, command: str = "distill") -> Context:
    return Context(command, overrides, overrides, recipes_dir(), command, folder)


@functools.cache
def composer(folder: Path | None = None) -> Composer:
    return Composer(recipes_dir(), folder)


def ready(*overrides: str, folder: Path | None = None, command: str = "distill") -> DictConfig:
    composed = composer(folder).compose(command, overrides)
    return prepare(composed, context(*overrides, folder=folder, command=command))


def changed(**settings: Any) -> DictConfig:
    """Settings with values that no command line could give them; dots in a key are double underscores."""
    cfg = composer().compose("distill", [])
    with unlocked(cfg):
        for key, value in settings.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def test_the_default_settings_are_fine() -> None:
    cfg = ready()
    assert list(cfg.loss) == list(cfg.weights) == ["ce", "kd"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["+optim.momentun=0.9"], "torch.optim.SGD takes no argument 'momentun' (= 0.9); did you mean 'momentum'"),
        (["+optim.params=3"], "optim.params is passed by kdkit itself; leave it out"),
        (["~optim.lr", "optim=timm", "optim._target_=torch.optim.Rprop"], "torch.optim.Rprop takes no argument 'opt'"),
        (["scheduler._target_=torch.optim.lr_scheduler.StepLR"], "StepLR takes no argument 'warmup'"),
        (["+task.labels=3"], "task: kdkit.tasks.Classification takes no argument 'labels'"),
        (["+data.rotation=3"], "data: kdkit.data.Digits takes no argument 'rotation' (= 3); did you mean 'rotate'"),
        (["+loss.kd.temprature=3"], "takes no argument 'temprature' (= 3); did you mean 'temperature'"),
        (["+teacher.train.data.lables=3"], "teacher.train.data: kdkit.data.Digits takes no argument 'lables'"),
        (["+teacher.train.engine.emma=0.5"], "teacher.train.engine has no setting 'emma'; did you mean 'ema'"),
        (["+teacher.train.engine.precision=bf16"], "teacher.train.engine.precision would change nothing"),
        (["seed=99999999999"], "seed must be a whole number of at most 2147483647"),
        (["student.input_size=abc"], "student.input_size must be a whole number of at least 1, got 'abc'"),
        (["teacher.members=3"], "teacher.members must be a list of blocks"),
        (["+teacher.trian.epochs=3"], "teacher has no setting 'trian'; did you mean 'train'"),
        (["+student.modle=3"], "student has no setting 'modle'; did you mean 'model'"),
        (["+features.mid.student=layer1", "+features.mid.techer=layer1"], "features.mid has no setting 'techer'"),
        (["+engin.epochs=3"], "there is no setting 'engin'; did you mean 'engine'"),
        (["+weights.kdd=1"], "weights.kdd has no loss; did you mean 'kd'"),
        (["+weights.nkd=1"], "weights.nkd has no loss; choose it too: 'loss=[ce,nkd]'"),
        (["~weights.kd"], "loss.kd has no weight; add +weights.kd=1.0"),
        (["weights.kd=much"], "weights.kd: a weight must be a number or a schedule"),
        (["+loss.kdd.temperature=3"], "loss.kdd is no block with a _target_; did you mean 'kd'"),
        (["teacher=none"], "loss.kd learns from a teacher and there is none; choose one with teacher="),
        (["teacher=none", "loss=[ce]", "+teacher_loss.ce._target_=kdkit.losses.CELoss", "+teacher_weights.ce=1"],
         "teacher_loss is set, but there is no teacher that could learn"),
        (["data.labels=0"], "loss.ce needs labels and data.labels=0 leaves none"),
        (["loss=[]"], "there is no loss to train with; choose some: 'loss=[ce,kd]'"),
        (["student=timm"], "student.model.name must be given; add student.model.name="),
        (["data=imagenet"], "data.root must be given: the folder with the ILSVRC2012 images of https://image-net.org"),
        (["data=image_folder"], "data.root must be given: a folder of images, train/<class>/*.jpg and val"),
        (["~student"], "student is null; choose one of `kdkit ls models`: student="),
        (["~optim"], "optim must be a block with a _target_, got None; choose one: optim="),
        (["seed=-1"], "seed must be a whole number of at least 0, got -1"),
        (["engine.batch_size=0"], "engine.batch_size must be a whole number of at least 1, got 0"),
        (["engine.epochs=0"], "engine.epochs must be a whole number of at least 1, got 0"),
        (["engine.epochs=null"], "engine.epochs and engine.max_steps are both null; set one of them"),
        (["engine.accumulation=0"], "engine.accumulation must be a whole number of at least 1"),
        (["engine.ema=1.0"], "engine.ema must be a decay between 0 and 1, both excluded, or null; got 1.0"),
        (["engine.precision=bf15"], "engine.precision must be one of no, bf16, fp16, got 'bf15'"),
        (["engine.precision=false"], "got False; in yaml write it with quotes"),
        (["engine.device=gpu"], "engine.device must be one of auto, cpu, cuda, got 'gpu'"),
        (["engine.compile=1"], "engine.compile must be true or false, got 1"),
        (["teacher.train.max_steps=0"], "teacher.train.max_steps must be a whole number of at least 1, got 0"),
        (["teacher.ensemble=0"], "teacher.ensemble must be a whole number of at least 1, got 0"),
        (["~features.penultimate", "loss=[ce,nd]"], "reads the feature pair 'penultimate', unknown to features"),
        (["features.penultimate.teacher=null", "loss=[ce,nd]"], "features.penultimate.teacher must name a layer"),
        (["loss=[ce,nd]", "+teacher_loss.ce._target_=kdkit.losses.CELoss", "+teacher_weights.ce=1"],
         "needs class means of a teacher that stays as it is, and this one learns"),
        (["loss=[mdcs]", "data.views=1"], "loss.mdcs compares 2 views of each image and data.views=1; set data"),
        (["+data.strong._target_=kdkit.data.Cutout"], "data.strong is what the second view of an image gets, and data"),
        (["teacher=ema", "loss=[ce,bdkd]"], "lets the teacher learn, and teacher.ema makes it follow the student"),
        (["teacher=ema", "loss=[ce,nd]"], "needs class means of a teacher that stays as it is, and teacher.ema"),
        (["teacher=ema", "+teacher.ema.momentun=3"], "takes no argument 'momentun' (= 3); did you mean 'momentum'"),
        (["teacher=ema", "+teacher.ema.task=3"], "teacher.ema.task is passed by kdkit itself; leave it out"),
        (["+teacher.ema.momentum=0.5"], "teacher.ema must be a block with a _target_, got {'momentum': 0.5}"),
        (["loss=[ce,mesa]", "teacher=mlp"], "teacher=mlp would change nothing: teacher.ema makes the teacher a moving"),
        (["loss=[ce,mesa]", "teacher.ensemble=2"], "teacher.ensemble=2 would change nothing"),
        (["loss=[ce,dml]", "teacher=none"], "loss.dml learns from a teacher and there is none"),
        (["chain=3"], "chain must be a block of links, name: settings, got 3"),
        (["+chain.a=3"], "chain.a must be a block of settings or null, got 3"),
        (["+chain.a.studnet=3"], "chain.a has no setting 'studnet'; did you mean 'student'"),
        (["+chain.a.engine.precision=bf16"], "chain.a.engine.precision would change nothing: engine.precision holds"),
        (["+chain.a.engine.epoch=3"], "chain.a: engine has no setting 'epoch'; did you mean 'epochs'"),
        (["+chain.a.seed=-1"], "chain.a: seed must be a whole number of at least 0, got -1"),
        (["+chain.a.student.model.wdith=3"], "chain.a: student.model: kdkit.models.small_cnn takes no argument"),
        (["+chain.a.loss.nkd.gamma=2"], "chain.a: loss.nkd"),
        (["+chain.a={}", "teacher=none", "loss=[ce]"], "chain starts from a teacher that is there before its students"),
        (["+chain.a={}", "teacher=ema"], "chain starts from a teacher that is there before its students"),
        (["+chain.a={}", "loss=[ce,dml]"], "chain hands finished students on, and with teacher_loss=['ce', 'dml']"),
        (["student.model._target_=torch.nn.Linear"], "student.model: torch.nn.Linear takes no argument"),
        (["~teacher.train"], "teacher.weights is null, so the teacher is trained first, but teacher.train is missing"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_way_out(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ready(*overrides)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_alone_has_no_teacher_to_learn_from() -> None:
    assert list(ready(command="train").loss) == ["ce"]
    with pytest.raises(ConfigError, match=r"loss.kd learns from a teacher, and kdkit train trains a network alone"):
        ready("loss=[ce,kd]", command="train")
    with pytest.raises(ConfigError, match="network must be student or teacher, got 'both'"):
        ready("network=both", command="train")
    assert ready("network=teacher", "~student", command="train").student is None


def test_an_experiment_may_tune_losses_that_are_not_chosen(write: Write) -> None:
    text = "# @package _global_\nloss: {kd: {temperature: 3.5}}\nweights: {kd: 0.5, nkd: 2.0}\n"
    folder = write("experiment/tuned", text)
    cfg = ready("experiment=tuned", "loss=[ce,nkd]", folder=folder)
    assert list(cfg.loss) == ["ce", "nkd"]
    assert dict(cfg.weights) == {"ce": 1.0, "nkd": 2.0}
    assert ready("experiment=tuned", "loss=[ce,kd]", folder=folder).loss.kd.temperature == 3.5


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("engin: {epochs: 3}", "there is no setting 'engin'; did you mean 'engine'"),
        ("engine: {epoch: 3}", "engine has no setting 'epoch'; did you mean 'epochs'"),
        ("weights: {ndk: 1.0}", "weights.ndk has no loss; did you mean"),
        ("loss: {kdd: {temperature: 3}}", "loss.kdd is no block with a _target_; did you mean 'kd'"),
        ("optim: {momentun: 0.9}", "takes no argument 'momentun' (= 0.9); did you mean 'momentum'"),
        ("trust: [evil]", "trust=['evil'] stands in a yaml file"),
        ("teacher: {train: {epoch: 3}}", "teacher.train has no setting 'epoch'; did you mean 'epochs'"),
        ("spec: {num_clases: 3}", "spec has no setting 'num_clases'; did you mean 'num_classes'"),
        ("student: {model: {trust_remote_code: true}}", "student.model.trust_remote_code runs code that comes with"),
    ],
)
def test_a_typo_in_a_yaml_is_caught(write: Write, content: str, text: str) -> None:
    folder = write("experiment/typo", f"# @package _global_\n{content}\n")
    with pytest.raises(ConfigError) as caught:
        ready("experiment=typo", folder=folder)
    assert text in str(caught.value)


def test_a_debug_profile_does_not_make_a_teacher() -> None:
    assert ready("teacher=none", "loss=[ce]", "debug=default").teacher is None
    with pytest.raises(ConfigError, match=r"loss.bdkd learns from a teacher and there is none"):
        ready("teacher=none", "loss=[ce,bdkd]")


# Trust


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("os.system", "'os.system' is not among what kdkit lets a recipe call"),
        ("subprocess.run", "is not among what kdkit lets a recipe call"),
        ("builtins.eval", "is not among what kdkit lets a recipe call"),
        ("torch.load", "is not among what kdkit lets a recipe call"),
        ("torch.hub.load", "is not among what kdkit lets a recipe call"),
        ("pickle.loads", "add trust=[pickle] on the command line"),
        ("kdkit._files.os.system", "reached through the module os"),
        ("kdkit.teachers.store.shutil.rmtree", "reached through the module shutil"),
        ("kdkit.outputs.torch.load", "it is torch.serialization.load"),
        ("torch.nn.modules.module.torch.load", "it is torch.serialization.load"),
        ("kdkit._files.write_atomic", "it is kdkit._files.write_atomic"),
        ("kdkit.cli.main", "it is kdkit.cli.main"),
        ("kdkit.losses.__init__.KDLoss", "is not among"),
        ("kdkit.losses.KDLoss.__subclasses__", "is not among"),
        ("kdkit.losses.KDLos", "kdkit.losses has no 'KDLos'; did you mean 'KDLoss'"),
        ("kdkit.loses.KDLoss", "kdkit has no 'loses'"),
        ("torch.nn.Linaer", "torch.nn has no 'Linaer'; did you mean 'Linear'"),
        ("kdkit", "must be a dotted path like 'kdkit.losses.NKDLoss', got 'kdkit'"),
        ("kdkit losses", "must be a dotted path"),
    ],
)
def test_what_a_recipe_must_not_call(path: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(path, where="optim")
    assert text in str(caught.value)
    assert str(caught.value).startswith("optim: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "transformers.testing_utils.run_command",
        "timm.models._helpers.os.remove",
        "transformers.pipeline",
        "transformers.utils.hub.requests.get",
    ],
)
def test_helpers_of_libraries_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"is not among what kdkit lets a recipe call|has no"):
        locate(path)


@pytest.mark.slow
def test_models_of_timm_and_transformers_may_be_called() -> None:
    assert locate("timm.create_model").__name__ == "create_model"
    assert locate("transformers.AutoModelForCausalLM.from_pretrained").__name__ == "from_pretrained"


def test_what_a_recipe_may_call() -> None:
    import torch

    assert locate("torch.optim.SGD") is torch.optim.SGD
    assert locate("torch.nn.Linear") is torch.nn.Linear
    assert locate("kdkit.engine.schedulers.cosine").__name__ == "cosine"
    assert locate("torchvision.models.resnet18").__name__ == "resnet18"


def test_nothing_untrusted_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evilpkg.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"add trust=\[evilpkg\] on the command line"):
        locate("evilpkg.Thing")
    assert not marker.exists()
    with trusting(["evilpkg"]):
        assert locate("evilpkg.Thing").__name__ == "Thing"
    assert marker.exists()
    with trusting(["nosuchpkg"]), pytest.raises(ConfigError, match="needs the package 'nosuchpkg', which is neither"):
        locate("nosuchpkg.Thing")


def test_trust_is_read_from_the_command_line_only() -> None:
    assert typed_trust(["trust=[mypkg,other]", "seed=1"]) == ["mypkg", "other"]
    assert typed_trust(["++trust=['mypkg']"]) == ["mypkg"]
    assert typed_trust(["data.trust=[mypkg]"]) == []
    with pytest.raises(ConfigError, match="trust must list packages"):
        typed_trust(["trust=[a-b]"])
    assert list(ready("trust=[mypkg]").trust) == ["mypkg"]


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (
            {"callbacks": {"x": {"_target_": "os.system"}}},
            "hydra.callbacks.x: _target_ 'os.system' is no plugin of Hydra",
        ),
        ({"callbacks": {"x": {"_target_": "hydra.utils.get_object", "path": "evil"}}}, "is no plugin of Hydra"),
        ({"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, "hydra.job_logging.handlers.x may name classes"),
        (
            {"hydra_logging": {"handlers": {"x": {"class": "evil.Handler"}}}},
            "may name classes of Python's logging only",
        ),
        ({"job": {"env_set": {"PATH": "/evil"}}}, "hydra.job.env_set changes the environment"),
    ],
)
def test_a_recipe_cannot_run_code_through_hydra(node: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verify_hydra(OmegaConf.create(node))
    assert text in str(caught.value)


def test_trust_remote_code_has_to_be_typed() -> None:
    typed = "++teacher.model.trust_remote_code=true"
    with pytest.raises(ConfigError, match="type it on the command line: "):
        prepare(changed(teacher__model__trust_remote_code=True), context())
    with pytest.raises(ConfigError, match="takes no argument 'trust_remote_code'"):
        ready(typed)


# A teacher that is the student, and chains


def test_a_loss_may_ask_for_the_average_whatever_network_was_chosen() -> None:
    for overrides in (["loss=[ce,mesa]"], ["loss=[ce,mesa]", "experiment=digits"], ["loss=[ce,kd]", "teacher=ema"]):
        assert list(ready(*overrides).teacher) == ["ema"]
    assert "model" in ready("loss=[ce,mesa]", "teacher.ema=null").teacher
    with pytest.raises(ConfigError, match=r"teacher.ema is an average of the student and cannot be trained by itself"):
        ready("teacher=ema", "network=teacher", command="train")


def test_a_comparison_may_have_a_method_that_teaches_itself() -> None:
    found = compare_configs("losses=[kd,mesa]", "teacher=mlp")
    averaged = {name for name, cfg in found.items() if "ema" in cfg.teacher}
    assert averaged == {"mesa"} and set(found) == {"ce", "kd", "mesa"}


def test_a_link_is_the_run_with_changes_of_its_own() -> None:
    cfg = ready(
        "+student@chain.middle.student=mlp",
        "+chain.middle.optim.lr=0.5",
        "+chain.middle.loss={kd: {temperature: 2.0}}",
        "+chain.middle.engine.epochs=3",
        "+chain.last=null",
        "seed=7",
    )
    settings = OmegaConf.to_container(cfg, resolve=True)
    middle, last = (link_settings(settings, name) for name in ("middle", "last"))
    assert middle["student"]["model"]["_target_"] == "kdkit.models.mlp"
    assert "width" not in middle["student"]["model"]
    assert middle["optim"] == {**settings["optim"], "lr": 0.5}
    assert middle["loss"] == {"kd": {**settings["loss"]["kd"], "temperature": 2.0}}
    assert middle["weights"] == {"kd": 1.0}
    assert middle["engine"] == {**settings["engine"], "epochs": 3}
    assert (middle["seed"], last["seed"]) == (107, 207)
    assert {key: value for key, value in last.items() if key not in ("seed", "chain")} == {
        key: value for key, value in settings.items() if key not in ("seed", "chain")
    }


def test_a_link_may_replace_what_has_a_target() -> None:
    cfg = ready(
        "+chain.a.optim={_target_: torch.optim.Adam, lr: 0.1}", "+chain.a.seed=3", "+chain.a.weights.kd=0.25",
    )  # fmt: skip
    link = link_settings(OmegaConf.to_container(cfg, resolve=True), "a")
    assert link["optim"] == {"_target_": "torch.optim.Adam", "lr": 0.1}
    assert link["seed"] == 3
    assert link["weights"] == {"ce": 1.0, "kd": 0.25}


# Comparisons


def test_methods_and_seeds() -> None:
    assert method_losses("kd", ["ce"]) == ["ce", "kd"]
    assert method_losses("ce", ["ce"]) == ["ce"]
    assert method_losses("kd+nd", ["ce"]) == ["ce", "kd", "nd"]
    assert method_losses("kl", []) == ["kl"]
    assert seed_list(OmegaConf.create({"seeds": 3, "seed": 5})) == [5, 6, 7]
    assert seed_list(OmegaConf.create({"seeds": [4, 2], "seed": 0})) == [4, 2]
    for seeds in (0, [], [1, "a"], [-1]):
        with pytest.raises(ConfigError, match="seeds must be a number of runs of at least 1 or a list"):
            seed_list(OmegaConf.create({"seeds": seeds, "seed": 0}))
    with pytest.raises(ConfigError, match="seeds must all differ"):
        seed_list(OmegaConf.create({"seeds": [1, 1], "seed": 0}))


def compare_configs(*overrides: str, folder: Path | None = None) -> dict[str, DictConfig]:
    cfg = composer(folder).compose("compare", overrides)
    return method_configs(cfg, context(*overrides, folder=folder, command="compare"))


def test_a_comparison_has_settings_per_method(write: Write) -> None:
    folder = write("experiment/tuned", "# @package _global_\nloss: {kd: {temperature: 3.5}}\nlosses: [kd, kd+js]\n")
    found = compare_configs(
        "experiment=tuned", "engine.epochs=7", "loss=[ce,kd,js]", "weights.js=0.25", "seeds=2", folder=folder
    )
    assert {name: list(cfg.loss) for name, cfg in found.items()} == {
        "ce": ["ce"],
        "kd": ["ce", "kd"],
        "kd+js": ["ce", "kd", "js"],
    }
    assert found["kd+js"].weights.js == 0.25
    assert found["kd"].loss.kd.temperature == 3.5
    assert all(cfg.engine.epochs == 7 for cfg in found.values())


def test_a_comparison_names_the_method_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"losses: 'kdd' names no loss recipe 'kdd'; did you mean 'kd'"):
        compare_configs("losses=[ce,kdd]")
    with pytest.raises(ConfigError, match=r"method 'kd': loss.kd learns from a teacher and there is none"):
        compare_configs("losses=[ce,kd]", "teacher=none")
    with pytest.raises(ConfigError, match="losses must be a list of loss recipes"):
        compare_configs("losses=kd")
