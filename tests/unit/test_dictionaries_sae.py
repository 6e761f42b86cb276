"""The sparse autoencoders besides TopK: gradients, what they find, what they promise."""

import numpy as np
import pytest
import torch
from planted import fvu, mean_maximum_cosine, mixture

import conceptome_kernels
from conceptome.config.dictionaries import OPTIONS
from conceptome.dictionaries import fit
from conceptome.dictionaries.batch_topk import BatchTopKTrainer, MatryoshkaTrainer
from conceptome.dictionaries.engine import Active, KernelEngine
from conceptome.dictionaries.gated import GatedTrainer
from conceptome.dictionaries.jumprelu import JumpReluTrainer
from conceptome.dictionaries.relu import PAnnealingTrainer, ReluL1Trainer
from conceptome.dictionaries.training import random_atoms
from conceptome.errors import ConfigError

X, TRUTH = mixture()
TRAINERS = {
    "batch_topk": (BatchTopKTrainer, {"k": 5, "k_aux": 3, "aux_coefficient": 0.5}),
    "matryoshka": (MatryoshkaTrainer, {"k": 5, "k_aux": 3, "aux_coefficient": 0.5, "prefixes": [0.1, 0.5, 1]}),
    "relu_l1": (ReluL1Trainer, {"penalty_warm_up": 0.0, "l1_coefficient": 0.3}),
    "p_annealing": (PAnnealingTrainer, {"penalty_warm_up": 0.0, "l1_coefficient": 0.3, "anneal_steps": 4}),
    "jumprelu": (JumpReluTrainer, {"k": 5, "bandwidth": 0.3, "threshold": 0.2}),
    "gated": (GatedTrainer, {"l1_coefficient": 0.3}),
}
LEARNED = {
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4, "prefixes": [0.25, 1]},
    "relu_l1": {},
    "p_annealing": {},
    "jumprelu": {"k": 4},
    "gated": {"l1_coefficient": 0.4},
}
D, M, B = 13, 45, 37
EVERY = pytest.mark.parametrize("name", sorted(TRAINERS))


@pytest.fixture(params=["kernels", "torch"])
def engine(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    elif not conceptome_kernels.available():
        pytest.skip("no compiled kernels")
    return request.param


def trainer_of(name):
    """A trainer somewhere on the way: no two parameters alike."""
    kind, options = TRAINERS[name]
    rng = np.random.default_rng(3)
    options = OPTIONS[name](method=name, m=M, **options)
    made = kind(random_atoms(M, D, seed=0), np.linspace(-1, 1, D, dtype=np.float32), options)
    for key, value in made.parameters.items():
        if key != "atoms":
            value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    made.restore(made.state())
    made.optimiser.learning_rate = 1e-3
    return made


def autograd(name, trainer, x, dead, exponent=1.0):
    """Value of Σ‖x̂−x‖²/Σ‖x−mean‖², and gradients of the whole loss, in float64 and from the formula alone."""
    options = trainer.options
    p = {key: torch.from_numpy(value.astype(np.float64)).requires_grad_() for key, value in trainer.parameters.items()}
    x = torch.from_numpy(x.astype(np.float64))
    size, unit = B * float(D), D**0.5
    product = (x - p["bias"]) @ p["encoder"].T
    scores = product + p["encoder_bias"]

    def error_of(z, upto=M):
        return z[:, :upto] @ p["atoms"][:upto] + p["bias"] - x

    extra = 0.0
    if name in ("batch_topk", "matryoshka"):
        bound = scores.detach().flatten().clamp(min=0).sort(descending=True).values[B * options.k - 1]
        z = torch.where((scores >= bound) & (scores > 0), scores, 0)
        if name == "matryoshka":
            ends = [4, 22]  # of 45 atoms, beside all of them
            assert options.prefix_ends == [*ends, M]
            extra = sum(error_of(z, end).square().sum() for end in ends) / size
    elif name == "jumprelu":
        threshold = p["log_threshold"].exp()
        width = options.bandwidth * unit
        z = Jump.apply(scores, threshold, width)
        l0 = Step.apply(scores, threshold, width).sum() / B
        extra = options.l0_coefficient * (l0 / options.k - 1) ** 2
    elif name == "gated":
        magnitude = p["log_gain"].exp() * product + p["magnitude_bias"]
        z = torch.where(scores > 0, magnitude.clamp(min=0), 0)
        frozen = scores.clamp(min=0) @ p["atoms"].detach() + p["bias"].detach() - x
        extra = frozen.square().sum() / size + options.l1_coefficient * scores.clamp(min=0).sum() / (B * unit)
    else:
        z = scores.clamp(min=0)
        # FLOOR, which the annealed penalty adds to codes for rows of unit length.
        lengths = torch.where(z > 0, z / unit + (0.01 if name == "p_annealing" else 0), 1)
        powers = torch.where(z > 0, lengths**exponent, 0).sum() / B
        extra = getattr(trainer, "coefficient", options.l1_coefficient) * powers
    error = error_of(z)
    squared = error.square().sum()
    if dead.any() and name in ("batch_topk", "matryoshka"):
        of_dead = torch.where(torch.from_numpy(dead), scores, -1e9)
        k_aux = min(options.k_aux, int(dead.sum()))
        bound = of_dead.detach().sort(dim=1, descending=True).values[:, k_aux - 1 : k_aux]
        revived = torch.where((of_dead >= bound) & (scores > 0), scores, 0)
        miss = revived @ p["atoms"] + error.detach()
        extra = extra + options.aux_coefficient * miss.square().sum() / squared.detach()
    (squared / size + extra).backward()
    gradients = {key: value.grad.numpy() for key, value in p.items()}
    atoms = p["atoms"].detach().numpy()
    gradients["atoms"] -= (gradients["atoms"] * atoms).sum(axis=1, keepdims=True) * atoms
    return float(squared.detach()) / size, gradients, (z.detach() > 0).any(dim=0).numpy()


class Jump(torch.autograd.Function):
    """z = π·H(π − θ) with the pseudo-derivative −θ/ε · 1[|π − θ| < ε/2] in θ."""

    @staticmethod
    def forward(ctx, scores, threshold, width):
        ctx.save_for_backward(scores, threshold)
        ctx.width = width
        return torch.where(scores > threshold, scores, 0)

    @staticmethod
    def backward(ctx, gradient):
        scores, threshold = ctx.saved_tensors
        near = (scores - threshold).abs() < ctx.width / 2
        in_threshold = -(gradient * near).sum(dim=0) * threshold / ctx.width
        return torch.where(scores > threshold, gradient, 0), in_threshold, None


class Step(torch.autograd.Function):
    """H(π − θ) with the pseudo-derivative −1/ε · 1[|π − θ| < ε/2] in θ, and none in π."""

    @staticmethod
    def forward(ctx, scores, threshold, width):
        ctx.save_for_backward(scores, threshold)
        ctx.width = width
        return (scores > threshold).double()

    @staticmethod
    def backward(ctx, gradient):
        scores, threshold = ctx.saved_tensors
        near = (scores - threshold).abs() < ctx.width / 2
        return None, -(gradient * near).sum(dim=0) / ctx.width, None


@EVERY
@pytest.mark.parametrize("dead", [[], [3, 7, 20], list(range(M))], ids=["none", "some", "all"])
def test_gradients_are_those_of_autograd(name, dead, engine):
    trainer = trainer_of(name)
    assert isinstance(trainer.engine, KernelEngine) == (engine == "kernels")
    dead = np.isin(np.arange(M), dead)
    x = (2 * np.random.default_rng(1).standard_normal((B, D))).astype(np.float32)
    expected_fvu, expected, expected_fired = autograd(name, trainer, x, dead)
    value, fired = trainer.step(x, dead, 0)
    assert value == pytest.approx(expected_fvu, rel=1e-5)
    np.testing.assert_array_equal(fired > 0, expected_fired)
    for key, (first, _) in trainer.optimiser.moments.items():
        # Adam's first moment after one step is a tenth of the gradient.
        scale = np.abs(expected[key]).max()
        assert scale > 0
        np.testing.assert_allclose(10 * first, expected[key], rtol=1e-4, atol=2e-5 * scale, err_msg=key)
    np.testing.assert_allclose(np.linalg.norm(trainer.parameters["atoms"], axis=1), 1, atol=1e-6)


def test_gradients_of_the_annealed_penalty(engine):
    trainer = trainer_of("p_annealing")
    number = trainer.options.steps - 1
    x = (2 * np.random.default_rng(1).standard_normal((B, D))).astype(np.float32)
    before = trainer_of("p_annealing")
    trainer.step(x, np.zeros(M, dtype=bool), number)
    assert trainer.p == pytest.approx(0.2)
    before.coefficient = trainer.coefficient
    _, expected, _ = autograd("p_annealing", before, x, np.zeros(M, dtype=bool), exponent=0.2)
    for key, (first, _) in trainer.optimiser.moments.items():
        scale = np.abs(expected[key]).max()
        np.testing.assert_allclose(10 * first, expected[key], rtol=1e-3, atol=5e-5 * scale, err_msg=key)


def test_the_annealed_penalty_keeps_its_size():
    options = TRAINERS["p_annealing"][1]
    config = OPTIONS["p_annealing"](method="p_annealing", m=M, steps=100, anneal_start=0.5, **options)
    exponents = [config.exponent(number) for number in range(100)]
    assert exponents[:51] == [1.0] * 51
    assert np.unique(np.round(exponents, 6)).tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert exponents == sorted(exponents, reverse=True)
    trainer = trainer_of("p_annealing")
    values = np.random.default_rng(0).gamma(2, 0.5, 1000).astype(np.float32)
    unit, floor = D**0.5, 0.01

    def penalty():
        return trainer.coefficient * ((values / unit + floor) ** trainer.p).sum()

    start = penalty()
    for number in range(0, trainer.options.steps, 50):
        trainer.penalty_gradient(values, B, number)
        assert penalty() == pytest.approx(start, rel=1e-4)
    assert trainer.p < 0.5


@pytest.fixture(scope="module")
def learned():
    return {
        name: fit(name, X, m=64, seed=0, threads=1, steps=400, batch_size=256, **options)
        for name, options in LEARNED.items()
    }


@EVERY
def test_planted_atoms_are_found(learned, name):
    dictionary = learned[name]
    assert mean_maximum_cosine(dictionary.atoms, TRUTH) > 0.9
    assert fvu(X, dictionary.decode(dictionary.encode(X))) < 0.15
    assert dictionary.card["training"]["dead"] < 20


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka", "jumprelu"])
def test_k_is_the_average_number_of_codes(learned, name):
    codes = learned[name].encode(X)
    assert codes.l0().mean() == pytest.approx(4, rel=0.15)
    assert codes.l0().max() > 4
    assert learned[name].card["options"]["k"] == 4
    assert learned[name].k == 64


@EVERY
def test_codes_of_a_row_do_not_depend_on_the_others(learned, name, engine):
    dictionary = learned[name]
    together = dictionary.encode(X[:300]).to_scipy().toarray()
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_allclose(dictionary.encode(X[:300][order]).to_scipy().toarray(), together[order], atol=1e-4)
    alone = np.concatenate([dictionary.encode(X[at : at + 1]).to_scipy().toarray() for at in range(10)])
    np.testing.assert_allclose(alone, together[:10], atol=1e-4)


@EVERY
def test_a_smaller_budget_keeps_the_largest(learned, name):
    whole, cut = (learned[name].encode(X[:200], k=k).to_scipy().toarray() for k in (None, 3))
    kept = np.sort(whole, axis=1)[:, -3:]
    np.testing.assert_array_equal(np.sort(cut, axis=1)[:, -3:], kept)
    assert ((cut == 0) | (cut == whole)).all()


@EVERY
def test_size_and_place_of_the_activations_do_not_matter(name):
    settings = {"m": 64, "seed": 0, "threads": 1, "steps": 60, "batch_size": 256, **LEARNED[name]}
    fits = [(fit(name, moved, **settings), moved) for moved in (X, 1000 * X + 500)]
    (first, codes), (second, others) = ((dictionary, dictionary.encode(rows)) for dictionary, rows in fits)
    assert second.card["training"]["fvu"] == pytest.approx(first.card["training"]["fvu"], rel=0.02)
    assert others.l0().mean() == pytest.approx(codes.l0().mean(), rel=0.02)
    assert np.mean((first.atoms * second.atoms).sum(axis=1) > 0.99) > 0.9
    assert others.to_scipy().sum() == pytest.approx(1000 * codes.to_scipy().sum(), rel=0.02)


@pytest.mark.skipif(not conceptome_kernels.available(), reason="no compiled kernels")
@EVERY
def test_kernels_and_torch_take_the_same_steps(name, monkeypatch):
    settings = {"m": 64, "seed": 1, "threads": 1, "steps": 60, "batch_size": 200, **LEARNED[name]}
    kernels = fit(name, X, **settings)
    monkeypatch.setenv("CONCEPTOME_KERNELS", "torch")
    plain = fit(name, X, **settings)
    np.testing.assert_allclose(kernels.card["training"]["fvu"], plain.card["training"]["fvu"], rtol=1e-3)
    assert np.mean((kernels.atoms * plain.atoms).sum(axis=1) > 0.999) > 0.9
    for key, value in plain.parameters.items():
        assert kernels.parameters[key].shape == value.shape
    codes, theirs = (dictionary.encode(X[:100]).to_scipy().toarray() for dictionary in (kernels, plain))
    assert np.abs(codes - theirs).mean() < 0.01 * theirs.mean()


@EVERY
def test_bytes_do_not_depend_on_threads(name):
    settings = {"m": 64, "seed": 1, "steps": 20, "batch_size": 200, **LEARNED[name]}
    one, again, two = (fit(name, X, threads=threads, **settings) for threads in (1, 1, 2))
    for key, value in one.parameters.items():
        assert value.tobytes() == again.parameters[key].tobytes()
        if conceptome_kernels.available():
            assert value.tobytes() == two.parameters[key].tobytes()
    other = fit(name, X, threads=1, **{**settings, "seed": 2})
    assert not np.array_equal(other.atoms, one.atoms)


@EVERY
def test_a_trainer_resumes_where_it_was(name):
    """A copy that was given parameters, moments, steps and state goes on with the same bytes."""
    rng = np.random.default_rng(5)
    batches = (2 * rng.standard_normal((6, B, D))).astype(np.float32)
    dead = np.isin(np.arange(M), [2, 9])
    whole, copy = trainer_of(name), trainer_of(name)
    numbers = [0, 1, 2, 600, 700, 999]
    for x, number in zip(batches[:4], numbers[:4]):
        whole.step(x, dead, number)
    for key, value in whole.parameters.items():
        copy.parameters[key][...] = value
        for mine, theirs in zip(copy.optimiser.moments[key], whole.optimiser.moments[key]):
            mine[...] = theirs
    copy.optimiser.steps = whole.optimiser.steps
    state = whole.state()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    copy.restore({key: value.copy() for key, value in state.items()})
    for x, number in zip(batches[4:], numbers[4:]):
        assert whole.step(x, dead, number)[0] == copy.step(x, dead, number)[0]
    for key, value in whole.finished(1.0).items():
        np.testing.assert_array_equal(copy.finished(1.0)[key], value)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_auxk_reaches_the_encoder_of_dead_atoms_and_of_no_other(name, engine):
    dead = np.isin(np.arange(M), [2, 7, 9])
    x = (2 * np.random.default_rng(1).standard_normal((B, D))).astype(np.float32)

    def gradients(coefficient):
        trainer = trainer_of(name)
        trainer.options = trainer.options.model_copy(update={"aux_coefficient": coefficient})
        # So small that they are never among the codes.
        trainer.parameters["encoder"][dead] *= 1e-3
        trainer.parameters["encoder_bias"][dead] = 1e-3
        trainer.restore(trainer.state())
        trainer.step(x, dead, 0)
        return {key: trainer.optimiser.moments[key][0].copy() for key in ("encoder", "atoms", "encoder_bias")}

    without, with_aux = gradients(0.0), gradients(0.5)
    for key, value in with_aux.items():
        assert not without[key][dead].any()
        assert (np.abs(value[dead]).reshape(3, -1).sum(axis=1) > 0).all()
        np.testing.assert_array_equal(value[~dead], without[key][~dead])


def test_auxk_revives_dead_atoms():
    crowded = mixture(atoms=200)[0]
    options = {"m": 256, "k": 4, "steps": 250, "batch_size": 128, "dead_after": 2000, "learning_rate": 2e-2}
    with_aux, without = (
        fit("batch_topk", crowded, threads=1, aux_coefficient=coefficient, **options).card["training"]
        for coefficient in (1 / 32, 0.0)
    )
    assert without["dead"] > 50
    assert with_aux["dead"] < 0.75 * without["dead"]


def test_a_prefix_of_matryoshka_reconstructs_on_its_own(learned):
    def alone(dictionary):
        codes = dictionary.encode(X).to_scipy().toarray()[:, :16]
        return fvu(X, codes @ dictionary.atoms[:16] + dictionary.bias)

    assert alone(learned["matryoshka"]) < 0.8 * alone(learned["batch_topk"])


@pytest.mark.parametrize("name", ["relu_l1", "p_annealing", "gated"])
def test_a_larger_penalty_leaves_fewer_codes(name):
    counts = [
        fit(name, X, m=64, threads=1, steps=80, batch_size=256, l1_coefficient=value).encode(X).l0().mean()
        for value in (0.02, 0.1, 0.5)
    ]
    assert counts[0] > counts[1] > counts[2]


def test_active_places():
    dense = np.array([[0, 3, 1, 2], [0, 0, 0, 0], [5, 5, 0, 5]], dtype=np.float32)
    indptr = np.array([0, 3, 3, 6])
    active = Active(indptr, np.array([1, 2, 3, 0, 1, 3], dtype=np.int32), dense[dense > 0])
    np.testing.assert_array_equal(active.csr(4).toarray(), dense)
    assert active.rows.tolist() == [0, 0, 0, 2, 2, 2]
    two = [[0, 3, 0, 2], [0, 0, 0, 0], [5, 5, 0, 0]]
    np.testing.assert_array_equal(active.largest_of_rows(2).csr(4).toarray(), two)
    assert active.largest_of_rows(3) is active
    np.testing.assert_array_equal(active.where(active.values > 4).csr(4).toarray(), np.where(dense > 4, dense, 0))
    assert active.sums(4, np.ones(6)).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("batch_topk", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k \(5"),
        ("jumprelu", {"m": 4, "k": 5}, r"m \(4 atoms\) must be at least k \(5"),
        ("matryoshka", {"prefixes": [0.5, 0.25, 1]}, r"prefixes must ascend to 1"),
        ("matryoshka", {"prefixes": [0.5]}, r"prefixes must ascend to 1"),
        ("matryoshka", {"prefixes": []}, r"prefixes"),
        ("relu_l1", {"l1_coefficient": -1}, r"l1_coefficient"),
        ("p_annealing", {"p_end": 0}, r"p_end"),
        ("gated", {"k_aux": 3}, r"unknown key 'k_aux'"),
        ("jumprelu", {"bandwidth": 0}, r"bandwidth"),
    ],
)
def test_complaints_about_options(name, options, message):
    with pytest.raises(ConfigError, match=message) as complaint:
        fit(name, X, **options)
    assert "\n" not in str(complaint.value)
