"""Recipes: the shipped ones, the ways through JSON and TOML, overrides, differences, strictness."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import tempfile
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.cli import main
from anybatch.commands.recipe import conventions, show_recipe
from anybatch.course import recipe_clock
from anybatch.errors import InputError
from anybatch.recipe import (
    AdamSettings,
    AdamWSettings,
    AdaptiveBatchSize,
    AdaptiveRefresh,
    AdditiveNoise,
    Augmentation,
    BatchNormSettings,
    BlockSettings,
    ClipGlobalNorm,
    ComputeSettings,
    ExponentialAverage,
    FisherNormBound,
    FixedRefresh,
    GradientPenalty,
    KFACSettings,
    KLBound,
    LAMBSettings,
    LARSSettings,
    LocalUpdates,
    LossSettings,
    Mixup,
    ModelSettings,
    MultiplicativeNoise,
    MuonSettings,
    NoBound,
    NormalizeGradient,
    Origin,
    ParameterKinds,
    PolynomialAverage,
    RandomErasing,
    Recipe,
    RecordSettings,
    RMSpropWarmupSettings,
    RunningMixup,
    ScalingRule,
    Schedules,
    SGDSettings,
    SGDWSettings,
    SharpnessAware,
    Stopping,
    Target,
    WeightRescaling,
)
from anybatch.recipe_file import apply_overrides, difference, load_recipe, shipped_recipe_names
from anybatch.recipe_mapping import nearest, recipe_from_mapping, recipe_to_mapping
from anybatch.schedules import (
    Clock,
    Constant,
    Cosine,
    Duration,
    Linear,
    OneCycle,
    Warmup,
    epochs,
    fraction,
    resolve_schedule,
)

# --- any valid recipe ----------------------------------------------------------------------------

NOT_NEGATIVE = st.floats(0, 1e6)
POSITIVE = st.floats(1e-12, 1e6)
RATE = st.floats(0, 1, exclude_max=True)
COUNT = st.integers(1, 2**40)
LENGTHS = st.builds(Duration, st.floats(0.001, 1e6), st.just("epochs")) | st.builds(
    Duration, COUNT.map(float), st.sampled_from(["updates", "examples"])
)
DURATIONS = LENGTHS | st.builds(fraction, st.floats(0.001, 1))
KINDS = st.builds(ParameterKinds, biases=st.booleans(), norms=st.booleans())
SHAPE = st.sampled_from(["cosine", "linear"])
PLAIN_SCHEDULES = (
    st.builds(Constant, value=NOT_NEGATIVE)
    | st.builds(Linear, start=NOT_NEGATIVE, end=NOT_NEGATIVE)
    | st.builds(Cosine, start=NOT_NEGATIVE, end=NOT_NEGATIVE)
    | st.builds(OneCycle, warmup=DURATIONS, peak=NOT_NEGATIVE, shape=SHAPE)
)
SCHEDULES = st.recursive(
    PLAIN_SCHEDULES,
    lambda into: st.builds(Warmup, duration=DURATIONS, start=NOT_NEGATIVE, into=into),
    max_leaves=3,
)
OPTIMIZERS = (
    st.builds(SGDSettings, lr=NOT_NEGATIVE, momentum=RATE, weight_decay=NOT_NEGATIVE)
    | st.builds(AdamSettings, lr=NOT_NEGATIVE, beta1=RATE, beta2=RATE, epsilon=POSITIVE)
    | st.builds(AdamWSettings, lr=NOT_NEGATIVE, beta1=RATE, weight_decay=NOT_NEGATIVE)
    | st.builds(
        MuonSettings,
        lr=NOT_NEGATIVE,
        nesterov=st.booleans(),
        adjust_lr=st.sampled_from(["original", "match_rms_adamw"]),
        adamw_lr=NOT_NEGATIVE,
    )
    | st.builds(
        SGDWSettings,
        lr=POSITIVE,
        momentum=RATE,
        weight_decay=NOT_NEGATIVE,
        decay=st.sampled_from(["coupled", "decoupled", "normalized"]),
    )
    | st.builds(
        LARSSettings,
        lr=NOT_NEGATIVE,
        buffer=st.sampled_from(["scaled", "unscaled"]),
        max_ratio=st.none() | POSITIVE,
        adapted=KINDS,
    )
    | st.builds(LAMBSettings, lr=NOT_NEGATIVE, beta2=RATE, max_weight_norm=st.none() | POSITIVE)
    | st.builds(RMSpropWarmupSettings, lr=POSITIVE, center=DURATIONS, width=DURATIONS)
)
TRANSFORMS = (
    st.builds(ClipGlobalNorm, max_norm=POSITIVE)
    | st.builds(NormalizeGradient, norm=POSITIVE)
    | st.builds(AdditiveNoise, std=POSITIVE)
    | st.builds(MultiplicativeNoise, std=POSITIVE)
)
BLOCKS = st.builds(
    BlockSettings,
    size=COUNT,
    penalty=st.none()
    | st.builds(GradientPenalty, method=st.just("exact"), unit=st.sampled_from(["absolute", "lr"]))
    | st.builds(SharpnessAware, radius=POSITIVE, weight=POSITIVE),
    clip_norm=st.none() | POSITIVE,
    accumulate=st.sampled_from(["fp32", "fp64"]),
)
SCALINGS = st.builds(
    ScalingRule, base_batch_size=COUNT, lr=st.sampled_from(["linear", "square-root", "constant"])
) | st.builds(ScalingRule, base_batch_size=COUNT, lr=st.just("noise-scale"), noise_scale=POSITIVE)
TARGETS = st.builds(
    Target,
    st.sampled_from(["loss", "accuracy", "bits_per_token"]),
    st.sampled_from([">=", "<="]),
    st.floats(-1e6, 1e6),
) | st.builds(Target, st.just(""), st.just(""), st.floats(-1e6, 1e6))
STOPPINGS = st.builds(
    Stopping,
    evaluate_every=DURATIONS,
    target=st.none() | TARGETS,
    target_on=st.sampled_from(["validation", "test"]),
    patience=st.none() | COUNT,
    min_delta=NOT_NEGATIVE,
)
AUGMENTATIONS = st.builds(
    Augmentation,
    crop_padding=st.integers(0, 64),
    padding_mode=st.sampled_from(["reflect", "zero"]),
    flip=st.sampled_from(["none", "random", "alternating"]),
    random_resized_crop=st.booleans(),
    erasing=st.none() | st.builds(RandomErasing, probability=st.floats(0, 1)),
    mixing=st.none() | st.builds(Mixup, alpha=POSITIVE) | st.builds(RunningMixup, alpha=POSITIVE),
    copies=st.integers(0, 50),
)
COMPUTE = st.builds(
    ComputeSettings,
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    precision=st.sampled_from(["fp32", "bf16", "fp64"]),
    channels_last=st.booleans(),
    threads=st.none() | COUNT,
    evaluation_batch_size=COUNT,
)
RECIPES = st.builds(
    Recipe,
    optimizer=OPTIMIZERS,
    duration=LENGTHS,
    batch_size=COUNT | st.just("full"),
    micro_batch_size=st.none() | COUNT,
    seed=st.integers(0, 2**63 - 1),
    model=st.none() | st.builds(ModelSettings, name=st.text(), width=POSITIVE),
    schedules=st.builds(Schedules, lr=SCHEDULES, momentum=SCHEDULES, batch_size=SCHEDULES),
    gradient=st.lists(TRANSFORMS, max_size=2).map(tuple),
    decayed=KINDS,
    scaling=st.none() | SCALINGS,
    blocks=st.none() | BLOCKS,
    rescaling=st.none() | st.builds(WeightRescaling, longest_skip=st.integers(0, 99)),
    batch_control=st.none() | st.builds(AdaptiveBatchSize, smallest=st.none() | COUNT),
    batch_norm=st.builds(
        BatchNormSettings, evaluated_with=st.sampled_from(["running", "last-update", "whole-set"])
    ),
    communication=st.none() | st.builds(LocalUpdates, every=COUNT, begin_after=DURATIONS),
    order=st.sampled_from(["shuffled", "shuffled-once", "fixed"]),
    origin=st.none() | st.builds(Origin, paper=st.text(), article=st.integers(0, 5)),
    loss=st.builds(LossSettings, reduction=st.sampled_from(["mean", "sum"]), label_smoothing=RATE),
    augmentation=AUGMENTATIONS,
    averaging=st.none()
    | st.builds(ExponentialAverage, decay=RATE, every=COUNT)
    | st.builds(PolynomialAverage, power=st.floats(0.0, 100.0), every=COUNT),
    stopping=STOPPINGS,
    compute=COMPUTE,
    records=st.builds(RecordSettings, log_every=COUNT, checkpoint_every=DURATIONS),
    image_size=st.none() | COUNT,
    description=st.text(),
)


REFRESHES = st.builds(
    lambda every, times, early: FixedRefresh(
        statistics_every=every, inverse_every=every * times, early_inverses=early
    ),
    st.integers(1, 50),
    st.integers(1, 20),
    st.booleans(),
) | st.builds(AdaptiveRefresh, similarity=NOT_NEGATIVE, longest=st.none() | COUNT)
KFACS = st.builds(
    KFACSettings,
    damping=POSITIVE,
    fisher=st.sampled_from(["empirical", "sampled", "exact"]),
    average=RATE,
    refresh=REFRESHES,
    left_out=st.lists(st.text(), max_size=2).map(tuple),
    bound=st.builds(FisherNormBound, largest=POSITIVE)
    | st.builds(KLBound, largest=POSITIVE)
    | st.just(NoBound()),
    wire=st.sampled_from(["fp32", "bf16", "fp16"]),
)


@settings(max_examples=50, deadline=None)
@given(KFACS)
def test_any_preconditioner_survives_json_and_show(kfac: KFACSettings) -> None:
    recipe = Recipe(optimizer=SGDSettings(lr=0.1), preconditioner=kfac)
    text = json.dumps(recipe_to_mapping(recipe), allow_nan=False)
    assert recipe_from_mapping(json.loads(text)) == recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(text)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            show_recipe(str(path), (), as_json=False)
    assert recipe_from_mapping(tomllib.loads(shown.getvalue())) == recipe


@settings(max_examples=150, deadline=None)
@given(RECIPES)
def test_any_recipe_survives_the_way_through_json(recipe: Recipe) -> None:
    text = json.dumps(recipe_to_mapping(recipe), allow_nan=False)
    assert recipe_from_mapping(json.loads(text)) == recipe


@settings(max_examples=30, deadline=None)
@given(RECIPES)
def test_what_show_prints_is_the_recipe_as_toml(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(json.dumps(recipe_to_mapping(recipe)))
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            show_recipe(str(path), (), as_json=False)
    assert recipe_from_mapping(tomllib.loads(shown.getvalue())) == recipe


def test_a_schedule_is_the_same_to_the_last_bit_after_a_way_through_a_file() -> None:
    recipe = Recipe(
        optimizer=SGDSettings(lr=0.1),
        schedules=Schedules(lr=Warmup(duration=fraction(1 / 3), into=Cosine())),
    )
    again = recipe_from_mapping(json.loads(json.dumps(recipe_to_mapping(recipe))))
    clock = Clock(997, 32, 9970)
    before, after = (resolve_schedule(r.schedules.lr, clock) for r in (recipe, again))
    assert [before(n / 97) for n in range(97)] == [after(n / 97) for n in range(97)]


# --- the shipped ones ----------------------------------------------------------------------------


def test_the_recipes_of_the_built_in_tasks_ship() -> None:
    names = shipped_recipe_names()
    assert names == sorted(names)
    assert {"default", "digits", "mnist", "fashion-mnist", "cifar10", "text"} <= set(names)


@pytest.mark.parametrize("name", shipped_recipe_names())
def test_a_shipped_recipe_loads_resolves_and_comes_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe_from_mapping(recipe_to_mapping(recipe)) == recipe
    assert difference(recipe, load_recipe(name)) == []
    clock = recipe_clock(recipe, 200_000)  # more than the largest batch
    schedules = recipe.schedules
    for schedule in (schedules.lr, schedules.momentum, schedules.weight_decay):
        resolved = resolve_schedule(schedule, clock)
        assert all(0 <= resolved(n / 20) <= 1 for n in range(21))


@pytest.mark.parametrize("name", shipped_recipe_names())
def test_a_shipped_recipe_shown_is_the_same_recipe(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_recipe(name, (), as_json=False)
    path = tmp_path / "shown.toml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe(name)


def test_everything_show_prints_has_its_meaning_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_recipe("cifar10", (), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    bare = [
        line for line in lines if "#" not in line and not line.partition(" =")[0].endswith("name")
    ]
    assert bare == []


# --- overrides and differences -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr=0.3", {"optimizer": {"name": "sgd", "lr": 0.3}}),
        (" optimizer.lr = 1e-3 ", {"optimizer": {"name": "sgd", "lr": 1e-3}}),
        ("duration=5 epochs", {"duration": "5 epochs"}),
        ('duration="5 epochs"', {"duration": "5 epochs"}),
        ("stopping.patience=none", {"stopping": {"patience": None}}),
        ("compute.compile=true", {"compute": {"compile": True}}),
        ("stopping.target=accuracy>=0.9", {"stopping": {"target": "accuracy>=0.9"}}),
        (
            "schedules.lr={name='cosine',end=0.1}",
            {"schedules": {"lr": {"name": "cosine", "end": 0.1}}},
        ),
        ("gradient=[]", {"gradient": []}),
        ("description=a=b", {"description": "a=b"}),
    ],
)
def test_an_override_is_put_in_place_and_leaves_the_original(
    text: str, expected: dict[str, object]
) -> None:
    original = {"optimizer": {"name": "sgd", "lr": 0.1}}
    assert apply_overrides(original, [text]) == original | expected
    assert original == {"optimizer": {"name": "sgd", "lr": 0.1}}


def test_later_overrides_win() -> None:
    recipe = load_recipe("digits", ["seed=1", "optimizer.lr=0.2", "seed=2"])
    assert (recipe.seed, recipe.optimizer.lr) == (2, 0.2)


KFAC = "preconditioner.name=kfac"


@pytest.mark.parametrize(
    ("overrides", "path", "expected"),
    [
        ([KFAC, "preconditioner.bound.name=none"], "preconditioner.bound.name", "none"),
        (["augmentation.flip=none"], "augmentation.flip", "none"),
        (["model=none"], "model", None),
        ([KFAC, "preconditioner.refresh.longest=none",
          "preconditioner.refresh.name=adaptive"], "preconditioner.refresh.longest", None),
    ],
)  # fmt: skip
def test_none_is_a_text_where_it_is_a_choice(
    overrides: list[str], path: str, expected: object
) -> None:
    recipe = load_recipe("cifar10", ["augmentation.flip=random", *overrides])
    value: object = recipe_to_mapping(recipe)
    for key in path.split("."):
        assert isinstance(value, dict)
        value = value[key]
    assert value == expected


@pytest.mark.parametrize(
    "overrides",
    [
        [KFAC, "preconditioner.refresh.inverse_every=50"],
        ["preconditioner.refresh.inverse_every=50", KFAC],
        [KFAC, "preconditioner.refresh.inverse_every=50", "preconditioner.refresh.name=fixed"],
    ],
)
def test_fields_of_a_default_choice_need_not_its_name(overrides: list[str]) -> None:
    settings = load_recipe("digits", overrides).preconditioner
    assert settings == KFACSettings(refresh=FixedRefresh(inverse_every=50))


def test_another_choice_keeps_what_was_given_before_it_alone() -> None:
    given = ["preconditioner.bound.largest=2e-4", "preconditioner.bound.name=kl"]
    settings = load_recipe("digits", [KFAC, *given]).preconditioner
    assert settings is not None
    assert settings.bound == KLBound(largest=2e-4)
    with pytest.raises(InputError, match=r"optimizer\.lr must be given"):
        load_recipe("digits", ["optimizer.name=adamw"])  # sgd's lr is in another unit
    settings = load_recipe("digits", [KFAC, "preconditioner.bound.name=kl"]).preconditioner
    assert settings is not None
    assert settings.bound == KLBound()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preconditioner.damping=0.1"], r'a name of: kfac, got .* \(name = "kfac" is missing\)'),
        (["schedules.momentum.end=0.5"], r"momentum\.end .* \(known with name = linear, cosine, "),
        ([KFAC, "preconditioner.refresh.similarity=0.5"], r"\(known with name = adaptive\)"),
        ([KFAC, "preconditioner.refresh.every=5"], r"refresh\.every must be a known key \(did you"),
    ],
)
def test_a_field_of_no_choice_says_what_to_write(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("digits", overrides)


def test_a_difference_can_be_that_of_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "diff", "digits", "digits", "--set", "optimizer.lr=0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["differences"]
    assert found == [{"path": "optimizer.lr", "one": 0.1, "other": 0.3}]


def test_an_override_can_take_an_optional_choice_away() -> None:
    assert load_recipe("digits").model is not None
    assert load_recipe("digits", ["model=none"]).model is None


def test_a_difference_names_every_path_with_both_values() -> None:
    one = load_recipe("digits")
    other = load_recipe(
        "digits", ["optimizer.lr=0.2", "gradient=[{name='clip-global-norm',max_norm=2.0}]"]
    )
    assert difference(one, other) == [
        ("optimizer.lr", 0.1, 0.2),
        ("gradient", [], None),
        ("gradient.0.name", None, "clip-global-norm"),
        ("gradient.0.max_norm", None, 2.0),
    ]


def test_another_optimizer_differs_by_its_name_and_fields() -> None:
    paths = [path for path, _, _ in difference(load_recipe("digits"), load_recipe("default"))]
    assert {"optimizer.name", "optimizer.lr", "optimizer.momentum", "optimizer.beta1"} <= set(paths)


def test_a_recipe_is_read_from_toml_from_json_and_from_a_function(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe("digits", ["seed=5"])
    Path("mine.json").write_text(json.dumps(recipe_to_mapping(recipe)))
    Path("mine.toml").write_text('seed = 5\n[optimizer]\nname = "sgd"\nlr = 1\n')
    Path("recipe_made_here.py").write_text(
        "from anybatch import load_recipe\n"
        "def make():\n"
        "    return load_recipe('digits', ['seed=5'])\n"
    )
    assert load_recipe("mine.json") == load_recipe("recipe_made_here:make") == recipe
    assert load_recipe("mine.toml") == Recipe(optimizer=SGDSettings(lr=1.0), seed=5)


# --- strictness (every message is in tests/robustness) -------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"optimizer\.lrr must be a known key \(did you mean lr\?\)"),
        ("optimizer.lr=true", r"optimizer\.lr must be a number, got True"),
        ("batch_size=3.7", r"batch_size must be a whole number or \"full\", got 3\.7"),
        ("seed='1'", r"seed must be a whole number, got 1"),
        ("stopping.evaluate_every=5", r"stopping\.evaluate_every must be text like"),
        ("gradient=[{name='clip-global-norm',max_norm=0}]", r"gradient\.0\.max_norm must be > 0"),
        ("gradient={}", r"gradient must be a list"),
        ("loss=3", r"loss must be a table"),
        ("optimizer.nesterov=1", r"optimizer\.nesterov must be true or false"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("digits", [override])


INVALID = [
    (lambda: SGDSettings(lr=-1), "lr must be >= 0"),
    (lambda: SGDSettings(lr=math.inf), "lr must be >= 0"),
    (lambda: SGDSettings(lr=1, momentum=1), r"momentum must be in \[0, 1\)"),
    (lambda: SGDSettings(lr=1, nesterov=True), "nesterov must come with momentum > 0"),
    (lambda: AdamSettings(lr=1, beta2=1), r"beta2 must be in \[0, 1\)"),
    (lambda: AdamWSettings(lr=1, epsilon=0), "epsilon must be > 0"),
    (lambda: MuonSettings(lr=1, adamw_lr=-1), "adamw_lr must be >= 0"),
    (lambda: ExponentialAverage(decay=0.9, every=0), "every must be >= 1 update"),
    (lambda: Stopping(patience=0), "patience must be >= 1 evaluation"),
    (lambda: Stopping(evaluate_every=epochs(0)), "evaluate_every must be > 0"),
    (lambda: RecordSettings(log_every=0), "log_every must be >= 1 update"),
    (lambda: ComputeSettings(threads=0), "threads must be >= 1"),
    (lambda: Augmentation(crop_padding=-1), "crop_padding must be >= 0"),
    (lambda: LossSettings(label_smoothing=1), r"label_smoothing must be in \[0, 1\)"),
    (
        lambda: Recipe(optimizer=SGDSettings(lr=1), duration=fraction(0.5)),
        "duration must be in epochs",
    ),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), batch_size=0), "batch_size must be >= 1"),
    # in a file such a value cannot be; made in Python it must not act as another one
    (lambda: LossSettings(reduction="median"), "reduction must be one of: mean, sum, got 'median'"),
    (lambda: ComputeSettings(precision="fp16"), "precision must be one of: fp32, bf16, fp64"),
    (lambda: ComputeSettings(device="gpu"), "device must be one of: auto, cpu, cuda, got 'gpu'"),
    (lambda: Augmentation(flip="sideways"), "flip must be one of: none, random, alternating"),
    (lambda: Augmentation(padding_mode="wrap"), "padding_mode must be one of: reflect, zero"),
    (lambda: Stopping(target_on="train"), "target_on must be one of: validation, test"),
    (lambda: MuonSettings(lr=1, adjust_lr="none"), "adjust_lr must be one of: original, match"),
    (lambda: SGDSettings(lr="0.1"), "lr must be a number"),
    (lambda: SGDSettings(lr=True), "lr must be a number"),
    (lambda: ExponentialAverage(decay=0.9, every=2.5), "every must be a whole number"),
    (lambda: Stopping(evaluate_every="1 epoch"), "evaluate_every must be a Duration"),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), duration="5 epochs"), "duration must be a Durat"),
    (lambda: Recipe(optimizer="sgd"), "optimizer must be"),
    (lambda: OneCycle(shape="cubic"), "shape must be one of: cosine, linear, got cubic"),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), batch_size="half"), "batch_size must be a whole"),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), batch_size=3.5), "batch_size must be a whole"),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), batch_size=None), "batch_size must be a whole"),
    (lambda: Recipe(optimizer=SGDSettings(lr=1), micro_batch_size="full"), "micro_batch_size must"),
    (
        lambda: Recipe(optimizer=SGDSettings(lr=1), micro_batch_size=12, ghost_batch_size=8),
        "micro_batch_size must be a multiple of ghost_batch_size 8",
    ),
    (
        lambda: Recipe(
            optimizer=SGDSettings(lr=1), blocks=BlockSettings(size=12), ghost_batch_size=8
        ),
        "blocks.size must be a multiple of ghost_batch_size 8",
    ),
    (
        lambda: Recipe(
            optimizer=SGDSettings(lr=1),
            blocks=BlockSettings(size=8, penalty=GradientPenalty(method="central")),
            compute=ComputeSettings(precision="bf16"),
        ),
        'blocks.penalty.method must be "exact" in bf16',
    ),
    (lambda: BlockSettings(size=0), "size must be >= 1 example"),
    (lambda: BlockSettings(size=8, clip_norm=0.0), "clip_norm must be > 0"),
    (lambda: GradientPenalty(coefficient=-1.0), "coefficient must be >= 0"),
    (lambda: GradientPenalty(epsilon=0.0), "epsilon must be > 0"),
    (lambda: GradientPenalty(method="backward"), "method must be one of: forward, central, exact"),
    (lambda: SharpnessAware(radius=0.0), "radius must be > 0"),
    (lambda: NormalizeGradient(norm=0.0), "norm must be > 0"),
    (lambda: AdditiveNoise(std=0.0), "std must be > 0"),
    (lambda: MultiplicativeNoise(std=-1.0), "std must be > 0"),
    (lambda: SGDWSettings(lr=0.0, weight_decay=0.1), "lr must be > 0 under decoupled"),
    (lambda: SGDWSettings(lr=1, decay="lr-decoupled"), "decay must be one of: coupled, decoupled"),
    (lambda: SGDWSettings(lr=1, momentum=0.0, nesterov=True), "nesterov must come with momentum"),
    (lambda: AdamWSettings(lr=0.0, decay="normalized"), "lr must be > 0 under normalized"),
    (lambda: LARSSettings(lr=1, trust=0.0), "trust must be > 0"),
    (lambda: LARSSettings(lr=1, max_ratio=0.0), "max_ratio must be > 0"),
    (lambda: LARSSettings(lr=1, buffer="both"), "buffer must be one of: scaled, unscaled"),
    (lambda: LAMBSettings(lr=1, beta2=1.0), r"beta2 must be in \[0, 1\)"),
    (lambda: LAMBSettings(lr=1, max_weight_norm=0.0), "max_weight_norm must be > 0"),
    (lambda: RMSpropWarmupSettings(lr=0.0), "lr must be > 0"),
    (lambda: RMSpropWarmupSettings(lr=1, rms_decay=1.0), r"rms_decay must be in \[0, 1\)"),
    (lambda: ScalingRule(base_batch_size=0), "base_batch_size must be >= 1"),
    (lambda: ScalingRule(base_batch_size=8, lr="noise-scale"), "noise_scale must be given"),
    (lambda: ScalingRule(base_batch_size=8, noise_scale=9.0), "noise_scale must be > 0, and only"),
    (lambda: AdaptiveBatchSize(factor=1.0), "factor must be > 1"),
    (lambda: AdaptiveBatchSize(per_noise_scale=0.0), "per_noise_scale must be > 0"),
    (lambda: BatchNormSettings(recalibration_examples=64), "recalibration_examples must be >= 2"),
    (
        lambda: BatchNormSettings(frozen=True, evaluated_with="last-update"),
        'evaluated_with must be "running" where BatchNorm is frozen',
    ),
    (lambda: LocalUpdates(every=0), "every must be >= 1 update"),
    (lambda: Mixup(alpha=0.0), "alpha must be > 0"),
    (lambda: RunningMixup(alpha=-1.0), "alpha must be > 0"),
    (lambda: RandomErasing(probability=1.5), r"probability must be in \[0, 1\]"),
    (lambda: RandomErasing(smallest_area=0.5), r"largest_area must be in \[0.5, 1\]"),
    (lambda: Augmentation(copies=-1), "copies must be >= 0"),
    (lambda: Origin(article=6), "article must be in 0 ... 5"),
]


@pytest.mark.parametrize(("make", "message"), INVALID)
def test_a_value_out_of_bounds_is_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("digits")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 3  # type: ignore[misc]
    assert hash(recipe) == hash(load_recipe("digits"))


# --- targets -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(TARGETS)
def test_a_target_survives_the_way_through_text(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "good", "nan", "inf", "1e999", "accuracy>0.9", "accuracy=>0.9", "x>=", "--1"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="target must be a number or like"):
        Target.parse(text)


def test_the_nearest_name_is_hinted_at_only_when_one_is_near() -> None:
    assert nearest("momentun", ["lr", "momentum"]) == "did you mean momentum?"
    assert nearest("xyz", ["lr", "momentum"]) == ""


def test_a_scaling_rule_that_cannot_be_applied_is_told_by_show() -> None:
    recipe = Recipe(
        optimizer=MuonSettings(lr=0.02),
        batch_size=64,
        loss=LossSettings(reduction="sum"),
        scaling=ScalingRule(base_batch_size=32),
    )
    told = " ".join(conventions(recipe))
    assert "the scaling rule cannot be applied: optimizer must be one that a mean" in told
