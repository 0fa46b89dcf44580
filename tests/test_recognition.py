"""SimCLR, MoCo and DINO: losses and views against values worked out by hand, and what a few updates learn."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from discs import SPEC, batch_of, discs, make_world, measured, seeded, updates
from torch import nn
from torch.nn import functional as F

from jepa_rl import ActionSpec, Batch, TrainConfig, WorldModel, WorldSpec
from jepa_rl.objectives import Views, info_nce, nt_xent, random_crop, recoloured
from jepa_rl.objectives.augment import turned_hue
from jepa_rl.objectives.dino import balanced, distillation
from jepa_rl.objectives.encoder_objective import real_pictures
from jepa_rl.testing import ObjectiveContract
from jepa_rl.training.checkpoint import TrainingState

NAMES = ("simclr", "moco", "dino")
PLACES = {"views": {"scale": (0.3, 1.0), "jitter": 0.0, "grayscale": 0.0}}  # views keep the colours
ACTION = ActionSpec("continuous", 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = {
    "simclr": PLACES,
    "moco": PLACES | {"queue": 256, "momentum": 0.9},
    "dino": PLACES | {"local": 0, "prototypes": 64, "momentum": (0.8, 1.0), "schedule": 100, "centre": 0.5},
}


class TestSimCLR(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return make_world("simclr", encoder_options={"widths": (8,)})


class TestMoCo(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return make_world("moco", encoder_options={"widths": (8,)}, queue=64)


class TestDINO(ObjectiveContract):
    def make_world(self) -> WorldModel:
        return make_world("dino", encoder_options={"widths": (8,)}, local=1, prototypes=16)


# -- the losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_of_unit_vectors(temperature):
    """Each view among the five other ones: its partner at cosine 1, four at 0; shuffled, the partner is one at 0."""
    e = torch.eye(3)
    hit, all_others = 1 / temperature, math.log(math.exp(1 / temperature) + 4)
    assert nt_xent(torch.cat([e, 7 * e]), temperature).item() == pytest.approx(all_others - hit, abs=1e-6)
    assert nt_xent(torch.cat([e, e[[1, 2, 0]]]), temperature).item() == pytest.approx(all_others, rel=1e-6)


def test_info_nce_of_unit_vectors():
    """A key at cosine 1 and two negatives at 0 and -1; a shuffled key is at cosine 0."""
    e = torch.eye(2)
    negatives = torch.stack([e[1], -e[0]])
    among = math.log(math.exp(2.0) + 1 + math.exp(-2.0))
    assert info_nce(3 * e[:1], e[:1], negatives, 0.5).item() == pytest.approx(among - 2.0, rel=1e-6)
    among = math.log(2 + math.exp(-2.0))
    assert info_nce(e[:1], e[1:], negatives, 0.5).item() == pytest.approx(among, rel=1e-6)


def test_distillation_skips_a_view_against_itself():
    """Two large views and a small one of one picture, two prototypes: four of the six pairs count."""
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    teacher, centre = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([0.0, 2.0])

    def entropy(g, v):
        target = torch.softmax((teacher[g] - centre) / 0.25, 0)
        return -(target * torch.log_softmax(student[v] / 0.5, 0)).sum()

    expected = (entropy(0, 1) + entropy(0, 2) + entropy(1, 0) + entropy(1, 2)) / 4
    target = ((teacher - centre) / 0.25).softmax(-1)
    found = distillation(student[:, None], target[:, None], 0.5)
    torch.testing.assert_close(found, expected)


def test_dinos_teacher_sees_large_crops_and_its_student_all():
    world = make_world("dino", local=3, local_scale=(0.05, 0.1), prototypes=8).eval()
    pictures, rng, objective = discs(6, 0)[0], seeded(), world.objective
    large = [Views((0.4, 1.0)).draw(pictures, 1, rng) for _ in range(2)]
    small = [Views((0.05, 0.1)).draw(pictures, 1, rng) for _ in range(3)]
    student = torch.stack([objective.head(world.encode(view)) for view in large + small])
    teacher = torch.stack([objective.teacher(view) for view in large])
    expected = distillation(student, (teacher / 0.04).softmax(-1), 0.1)
    _, terms = world.loss(batch_of(pictures), seeded())
    torch.testing.assert_close(terms["dino"], expected)


def test_balanced_shares_give_every_prototype_as_much():
    share = torch.rand(12, 4, generator=seeded()).softmax(-1)
    torch.testing.assert_close(balanced(share, 50).sum(0), torch.full((4,), 3.0))
    torch.testing.assert_close(balanced(share, 3).sum(1), torch.ones(12))
    assert balanced(share, 0) is share
    # By hand: columns sum to 2 and 1; the rows (3/8, 1/4), (3/8, 1/4), (1/4, 1/2) are then scaled to sum to 1.
    by_hand = balanced(torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.5, 0.5]]), 1)
    torch.testing.assert_close(by_hand, torch.tensor([[0.6, 0.4], [0.6, 0.4], [1 / 3, 2 / 3]]))
    alike = balanced(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), 1)
    torch.testing.assert_close(alike, torch.full((2, 2), 0.5))
    assert balanced(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 3).isfinite().all(), (
        "a prototype that nobody takes"
    )


# -- views ---------------------------------------------------------------------------------------------


def test_the_whole_picture_is_a_crop_and_a_flip_mirrors_the_same_one():
    pictures, _ = discs(4, 0)
    whole = Views((1.0, 1.0), jitter=0.0, grayscale=0.0, flip=0.0)
    assert torch.equal(whole.draw(pictures, 1, seeded()), pictures)
    assert torch.equal(replace(whole, flip=1.0).draw(pictures, 1, seeded()), pictures.flip(-1))
    grey = replace(whole, grayscale=1.0).draw(pictures, 1, seeded())
    assert torch.equal(grey[:, 0], grey[:, 2]) and not torch.equal(grey, pictures)
    seen, flipped = (random_crop(pictures, (0.5, 1.0), flip, seeded()) for flip in (0.0, 1.0))
    torch.testing.assert_close(flipped.flip(-1), seen, atol=1, rtol=0)
    assert not torch.equal(flipped, seen)


def test_crops_of_a_ramp_are_straight_and_as_large_as_asked():
    """Brightness 16 a pixel to the right: a crop's slope is its width, and the crop stays inside the picture."""
    ramp = (16 * torch.arange(16, dtype=torch.uint8)).expand(200, 1, 16, 16)
    seen = random_crop(ramp, (0.25, 0.25), 0.0, seeded())[:, 0].float()
    assert (seen == seen[:, :1]).all(), "rows of a horizontal ramp are equal"
    slopes = (seen[:, 0, 12] - seen[:, 0, 3]) / 9 / 16
    low, high = math.sqrt(0.25 * 3 / 4), math.sqrt(0.25 * 4 / 3)
    assert slopes.min() > low - 0.02 and slopes.max() < high + 0.02
    assert slopes.std() > 0.03, "ratios differ"
    assert seen[:, 0, 0].std() > 16, "places differ"


def test_stacked_frames_share_a_view_and_rows_do_not():
    picture = discs(1, 0)[0].repeat(2, 2, 1, 1)
    for views in (Views((0.2, 0.9), 0.0, 0.0), Views((1.0, 1.0), 1.0, 0.0)):
        seen = views.draw(picture, 2, seeded(1))
        assert torch.equal(seen[:, :3], seen[:, 3:]) and not torch.equal(seen[0], seen[1])


def test_colours():
    pictures = discs(300, 0)[0]
    assert recoloured(pictures, 1, 0.0, 0.0, seeded()) is pictures
    grey = recoloured(pictures, 1, 0.0, 1.0, seeded()).float()
    luma = torch.einsum("bcyx,c->byx", pictures.float(), torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(grey, luma.round()[:, None].expand_as(grey), atol=1.0, rtol=0)
    same = (recoloured(pictures, 1, 0.5, 0.0, seeded()) == pictures).flatten(1).all(1)
    assert 0.1 < same.float().mean() < 0.3, "four of five pictures change"
    single = pictures[:, :1]
    changed = recoloured(single, 1, 0.5, 1.0, seeded())
    assert changed.shape == single.shape and not torch.equal(changed, single)


def test_contrast_and_brightness_of_a_grey_picture():
    """Halves of brightness 60 and 100: every change keeps them grey, with mean 80 b and distance 40 b c."""
    halves = torch.tensor([60, 100], dtype=torch.uint8).repeat_interleave(8).expand(500, 3, 16, 16)
    seen = recoloured(halves, 1, 0.5, 0.0, seeded()).float()
    assert (seen.amax(1) - seen.amin(1)).max() <= 1, "grey stays grey, whatever saturation and hue"
    brightness = seen.mean((1, 2, 3)) / 80
    assert 0.59 < brightness.min() < 0.65 and 1.35 < brightness.max() < 1.41
    contrast = (seen[:, 0, 0, 15] - seen[:, 0, 0, 0]) / 40 / brightness
    assert 0.57 < contrast.min() < 0.66 and 1.34 < contrast.max() < 1.43


def test_a_hue_turns_all_the_way_round():
    colours = torch.rand(5, 3, generator=seeded())
    third = turned_hue(torch.full((1, 1, 1), 1 / 3))[0]
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(colours @ third.T @ luma, colours @ luma)
    assert (colours @ third.T - colours).abs().max() > 0.2
    torch.testing.assert_close(colours @ (third @ third @ third).T, colours, atol=1e-4, rtol=0)


# -- teachers, queue, centre ---------------------------------------------------------------------------


def test_mocos_queue_drops_the_oldest_keys_and_its_teacher_is_a_moving_average():
    world = make_world("moco", queue=10, momentum=0.75)
    objective, weight = world.objective, world.encoder.project.weight
    old_queue, old = objective.queue.clone(), objective.teacher.encoder.project.weight.clone()
    assert torch.equal(old, weight)

    def update(rows, seed):
        """One loss and its update. Returns the keys that the teacher gave."""
        pictures = discs(rows, seed)[0]
        _, view = objective.two_views(pictures, seeded(seed))
        keys = F.normalize(objective.teacher(view), dim=-1)
        before = objective.queue.clone()
        world.loss(batch_of(pictures), seeded(seed))
        assert torch.equal(objective.queue, before), "a loss alone changes nothing"
        world.after_update()
        return keys

    old_head = objective.teacher.head[0].bias.clone()
    with torch.no_grad():
        weight += 1.0
        objective.head[0].bias += 1.0
    first = update(6, 0)
    torch.testing.assert_close(objective.teacher.encoder.project.weight, old + 0.25)
    torch.testing.assert_close(objective.teacher.head[0].bias, old_head + 0.25)
    torch.testing.assert_close(objective.queue, torch.cat([first, old_queue[6:]]))
    second = update(6, 1)
    torch.testing.assert_close(objective.queue, torch.cat([second[4:], first[2:], second[:4]]))
    third = update(24, 2)[-10:]  # more keys than places: the last ones
    torch.testing.assert_close(objective.queue, third.roll(2, 0))


def test_dinos_centre_and_schedule():
    world = make_world("dino", local=0, prototypes=4, centre=0.75, momentum=(0.5, 1.0), schedule=4)
    objective = world.objective
    expected, momenta = torch.zeros(4), []
    for update in range(6):
        momenta.append(objective.momentum_now())
        world.loss(batch_of(discs(8, update)[0]), seeded())
        views = objective.two_views(discs(8, update)[0], seeded())
        logits = objective.teacher(torch.cat(views))
        expected = 0.75 * expected + 0.25 * logits.mean(0)
        world.after_update()
        torch.testing.assert_close(objective.mean_logits, expected)
    half = 0.75  # 1 - 0.5 (cos(pi / 2) + 1) / 2
    quarter = 1 - 0.5 * (math.cos(math.pi / 4) + 1) / 2
    assert momenta == pytest.approx([0.5, quarter, half, 1.5 - quarter, 1.0, 1.0])


def used(world):
    """Effective number of prototypes that a teacher assigns pictures to: the exponential of the mean's entropy."""
    objective = world.objective
    with torch.no_grad():
        logits = objective.teacher(discs(200, 9_999)[0]) - objective.mean_logits
    mean = (logits / objective.temperatures[1]).softmax(-1).mean(0)
    return torch.special.entr(mean).sum().exp().item()


def without_norms(head):
    for place, part in enumerate(head.layers):
        if isinstance(part, nn.BatchNorm1d):
            head.layers[place] = nn.Identity()


def test_dino_without_centring_collapses():
    """The head has no batch norms here, which delay it. Without one in the encoder, and so without anything against it,
    to one prototype; with that one still to few of them."""
    small = PLACES | {"local": 0, "prototypes": 16, "momentum": (0.9, 0.9), "dynamics": 0.0}
    found = {}
    kinds = {
        "centred": (0.5, 0, True),
        "balanced": (1.0, 3, True),
        "not centred": (1.0, 0, True),
        "bare": (1.0, 0, False),
    }
    for name, (centre, sinkhorn, norm) in kinds.items():
        options = small | {"centre": centre, "sinkhorn": sinkhorn}
        world = make_world("dino", encoder_options={"widths": (8, 16), "norm": norm}, **options)
        without_norms(world.objective.head)
        without_norms(world.objective.teacher.head)
        updates(world, 30, rate=1e-3)
        found[name] = used(world.train())
    assert found["bare"] < 1.1 and found["not centred"] < 4, found
    assert found["centred"] > 6 and found["balanced"] > 6, found


def test_dinos_head_sees_what_tells_pictures_apart():
    """Embeddings that share a large part, as those of a fresh perceptron do, would lie close to each other."""
    head = make_world("dino", prototypes=64).objective.head
    z = 3 + 0.3 * torch.randn(256, head.layers[0].in_features, generator=seeded())
    spread = head(z).std(0).mean()
    without_norms(head)
    assert spread > 0.08 and head(z).std(0).mean() < 0.03


# -- what the losses move, and what they leave alone ---------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "vae"])
def test_the_gradient_of_each_term_stays_in_its_part(name):
    world = make_world(name)
    batch = batch_of(discs(12, 0)[0], steps=2)
    total, terms = world.loss(batch, seeded())
    error = terms.pop("dynamics")
    encoder, dynamics = list(world.encoder.parameters()), list(world.dynamics.parameters())
    head = [p for p in world.objective.parameters() if p.requires_grad]
    (rest,) = (total - error,)
    assert all(g is not None and g.any() for g in gradients(rest, [encoder[-1], encoder[0], head[-1]]))
    assert all(g is None or not g.any() for g in gradients(rest, dynamics))
    assert all(g is None for g in gradients(error, encoder + head))
    assert any(g is not None and g.any() for g in gradients(error, dynamics))
    alone = make_world(name, dynamics=0.0).loss(batch, seeded())
    assert "dynamics" not in alone[1]
    torch.testing.assert_close(alone[0], rest)


def gradients(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("name", [*NAMES, "vae"])
def test_running_statistics_are_those_of_the_pictures_as_they_are(name):
    options = {} if name == "vae" else {"views": {"scale": (0.05, 0.1)}}
    world, plain = make_world(name, **options), make_world(name, **options)
    batch = batch_of(discs(12, 0)[0], steps=2)
    world.loss(batch, seeded())
    plain.encode_windows(batch.observations)
    for key, value in plain.encoder.state_dict().items():
        assert torch.equal(value, world.encoder.state_dict()[key]), key


def test_only_real_pictures_are_samples():
    batch = batch_of(discs(6, 0)[0], steps=2)
    valid = torch.tensor([[True, True], [True, False]])
    cut = Batch(batch.observations, batch.actions, batch.rewards, batch.terminated, valid)
    assert torch.equal(real_pictures(cut), batch.observations.flatten(0, 1)[:5])
    assert len(real_pictures(batch)) == 6


@pytest.mark.parametrize("name", [*NAMES, "vae"])
def test_a_stopped_run_goes_on_exactly(name, tmp_path):
    """Teachers, queue, centre and schedule are in the checkpoint; what ships is free of them."""
    worlds = [make_world(name, **SMALL.get(name, {})) for _ in range(2)]
    whole = updates(worlds[0], 3, seed=1)
    state = TrainingState(worlds[0], {"optimizer": whole}, TrainConfig(), {})
    state.save(tmp_path / "checkpoint.safetensors")
    fresh = torch.optim.Adam([p for p in worlds[1].parameters() if p.requires_grad], 3e-3)
    with torch.no_grad():
        for parameter in worlds[1].parameters():
            parameter.add_(0.1)
    TrainingState(worlds[1], {"optimizer": fresh}, TrainConfig(), {}).restore(
        tmp_path / "checkpoint.safetensors"
    )
    for world, optimizer in zip(worlds, (whole, fresh), strict=True):
        updates(world, 3, seed=2, optimizer=optimizer)
    first, second = (world.state_dict() for world in worlds)
    assert all(torch.equal(first[key], second[key]) for key in first)
    teachers = [key for key in first if "teacher" in key or "queue" in key or "mean_logits" in key]
    assert all(key.startswith("objective.") for key in teachers) and bool(teachers) == (name in NAMES[1:])


@pytest.mark.parametrize("encoder", ["frames", "keypoints", "vit"])
@pytest.mark.parametrize("name", [*NAMES, "vae"])
def test_any_encoder_and_several_pictures(name, encoder):
    shapes = (("near", (6, 16, 16)), ("far", (2, 16, 16)))
    spec = WorldSpec(None, 2, ACTION, parts=shapes)
    options = {
        "vit": {"patch": 4, "width": 16, "heads": 2, "depth": 1}, "keypoints": {"keypoints": 4},
        "frames": {"widths": (8,)},
    }  # fmt: skip
    world = make_world(name, spec, encoder, options[encoder])
    rng = seeded()
    seen = {
        part: torch.randint(0, 256, (4, 3, *shape), generator=rng, dtype=torch.uint8)
        for part, shape in shapes
    }
    loss, _ = world.loss(
        Batch(seen, torch.zeros(4, 2, 2), torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool)), rng
    )
    loss.backward()
    assert all(p.grad is not None for p in world.encoder.parameters())


# -- learning ------------------------------------------------------------------------------------------


def recognised(world):
    """Share of other pictures that are farther from a view than the other view of its picture."""
    rng, views = seeded(3), Views(**PLACES["views"])
    pictures = discs(300, 10_000)[0]
    with torch.no_grad():
        one, other = (F.normalize(world.encode(views.draw(pictures, 1, rng)), dim=-1) for _ in range(2))
    cosine = one @ other.T
    return (cosine < cosine.diagonal()[:, None]).float().mean().item()


@pytest.mark.parametrize(("name", "margin"), [("simclr", 0.12), ("moco", 0.09), ("dino", 0.07)])
def test_it_recognises_a_disc_by_its_colour_in_another_view(name, margin):
    untrained = recognised(measured(make_world(name, **SMALL[name])))
    world = make_world(name, **SMALL[name])
    updates(world, 40)
    found = recognised(world.eval())
    assert found > untrained + margin, (untrained, found)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("simclr", {"temperature": 0.0}, "temperature must be positive"),
        ("simclr", {"views": {"scale": (0.0, 1.0)}}, "0 < smallest <= largest <= 1"),
        ("simclr", {"views": {"scale": (0.5, 1.1)}}, "0 < smallest <= largest <= 1"),
        ("simclr", {"views": {"scale": (0.6, 0.5)}}, "0 < smallest <= largest <= 1"),
        ("simclr", {"views": {"jitter": -0.1}}, "jitter must lie in"),
        ("simclr", {"views": {"flips": 0.5}}, "flips"),
        ("simclr", {"dynamics": -1.0}, "dynamics must be at least 0"),
        ("simclr", {"width": 0}, "width must be at least 1"),
        ("moco", {"temperature": -1.0}, "temperature must be positive"),
        ("moco", {"momentum": 1.01}, "momentum must lie in"),
        ("moco", {"queue": 0}, "queue must be at least 1"),
        ("dino", {"momentum": (0.9, 1.1)}, "momentum.* must lie in"),
        ("dino", {"centre": -0.1}, "centre must lie in"),
        ("dino", {"temperatures": (0.1, 0.0)}, "temperatures.* must be positive"),
        ("dino", {"local_scale": (0.0, 0.3)}, "0 < smallest <= largest <= 1"),
        ("dino", {"sinkhorn": -1}, "sinkhorn must be at least 0"),
        ("dino", {"prototypes": 1}, "prototypes must be at least 2"),
        ("dino", {"schedule": 0}, "schedule must be at least 1"),
    ],
)
def test_options_that_make_no_sense(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_world(name, **options)


@pytest.mark.parametrize("name", [*NAMES, "vae"])
def test_one_picture_and_vectors_are_refused(name):
    world = make_world(name)
    before = copy.deepcopy(world.state_dict())
    one = Batch(
        discs(2, 0)[0].unsqueeze(0), torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(1, 1).bool(),
        valid=torch.zeros(1, 1).bool(),
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least 2 pictures in a batch, got 1"):
        world.loss(one, seeded())
    assert all(torch.equal(before[key], value) for key, value in world.state_dict().items())
    for parts in ((("state", (3,)),), (("picture", SPEC.pixels), ("state", (3,)))):
        with pytest.raises(ValueError, match="learns from pictures alone"):
            make_world(name, WorldSpec(None, 1, ACTION, parts=parts))
