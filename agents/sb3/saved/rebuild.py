"""Settings of Stable-Baselines3's agents made anew from pickles that were read as data.

Every object is made by its constructor, from values whose kinds are checked; what is not in these tables is refused.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import buffers, noise, policies, torch_layers
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from jepa_rl.agents.sb3.saved.pickles import Call, Named, PickleError, called
from jepa_rl.control import ControlConfig
from jepa_rl.dynamics.flow import FlowNetwork, FlowSampling, FlowTraining
from jepa_rl.training.joint import JointConfig

NUMBER = (int, float, np.number, np.bool_)
# What constructors, and taking values apart, raise.
MISFITS = (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, AssertionError)
PLAIN = (type(None), bool, int, float, str, bytes)


def name_of(kind: type) -> str:
    """Module and name of a class, as a pickle names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def checked(found: Any, *kinds: type) -> Any:
    """What was found.

    Raises:
        PickleError: if it is of none of these kinds.
    """
    if not isinstance(found, kinds):
        raise PickleError(f"it has a {type(found).__name__} in place of a {kinds[0].__name__}")
    return found


class Rebuild:
    """Makes what ``read_pickle`` found; call it with the whole.

    Args:
        classes: what may be named besides ``CLASSES``, such as the policies of an algorithm, by ``name_of``.
    """

    def __init__(self, classes: Mapping[str, type]) -> None:
        self.classes = {**CLASSES, **classes}
        self._made: dict[int, tuple[Any, Any]] = {}  # by id: what it was (so the id stays taken), and became
        self._open: set[int] = set()

    def __call__(self, value: Any) -> Any:
        """The object.

        Raises:
            PickleError: if something in it is unknown, of another kind than it should be, or holds itself.
        """
        self._made, self._open = {}, set()
        try:
            return self.make(value)
        except RecursionError as error:
            raise PickleError("it is nested too deeply") from error
        except TypeError as error:  # a set of lists
            raise PickleError(f"its parts do not fit together ({error})") from error

    def make(self, value: Any) -> Any:
        """A part of the object; what is met twice is made once."""
        if isinstance(value, PLAIN):
            return value
        if id(value) not in self._made:
            if id(value) in self._open:
                raise PickleError("it holds itself")
            self._open.add(id(value))
            self._made[id(value)] = value, self._new(value)
        return self._made[id(value)][1]

    def _new(self, value: Any) -> Any:
        if isinstance(value, Named):
            if value.path not in self.classes:
                raise PickleError(f"it names {value.path}")
            return self.classes[value.path]
        if isinstance(value, Call):
            return self._call(value)
        if isinstance(value, dict):
            return {self._key(key): self.make(part) for key, part in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)([self.make(part) for part in value])
        raise PickleError(f"it holds a {type(value).__name__}")

    @staticmethod
    def _key(value: Any) -> Any:
        if not isinstance(value, PLAIN):
            raise PickleError("it has a dict whose keys are no plain values")
        return value

    def _call(self, call: Call) -> Any:
        path = call.function.path if isinstance(call.function, Named) else ""
        recipe = RECIPES.get(path)
        if recipe is None:
            raise called(call.function)
        try:
            return recipe(self, call)
        except PickleError:
            raise
        except MISFITS as error:
            raise PickleError(f"what it gives to {path} does not fit ({error!r})") from error

    def expect(self, value: Any, *kinds: type) -> Any:
        """A part of the object, of one of these kinds."""
        return checked(self.make(value), *kinds)


# --- NumPy -----------------------------------------------------------------------------------------------------------


def _dtype(make: Rebuild, call: Call) -> np.dtype[Any]:
    name = make.expect(call.args[0], str)
    if not re.fullmatch("[biuf][0-9]{1,2}", name):  # objects and records are not made
        raise PickleError(f"it has an array of {name!r}")
    dtype = np.dtype(name)
    return dtype.newbyteorder(">") if call.state is not None and call.state[1] == ">" else dtype


def _scalar(make: Rebuild, call: Call) -> Any:
    dtype, data = make.expect(call.args[0], np.dtype), make.expect(call.args[1], bytes)
    (found,) = np.frombuffer(data, dtype)
    return found


def _array(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> np.ndarray:
    # A copy: an array in the memory of bytes cannot be written to.
    return np.frombuffer(bytes(data), dtype).reshape(shape, order=order).copy(order=order)


def _array_of_a_buffer(make: Rebuild, call: Call) -> np.ndarray:
    data, dtype, shape, order = call.args
    dtype = make.expect(dtype, np.dtype)
    return _array(checked(data, bytes, bytearray), dtype, make.expect(shape, tuple), order)


def _array_of_a_state(make: Rebuild, call: Call) -> np.ndarray:
    _, shape, dtype, fortran, data = call.state
    dtype = make.expect(dtype, np.dtype)
    return _array(checked(data, bytes), dtype, make.expect(shape, tuple), "F" if fortran else "C")


def _generator(make: Rebuild, call: Call) -> np.random.Generator:
    """A generator that draws what the saved one would have; what it would spawn is not kept."""
    inner = call.args[0]
    if (
        not isinstance(inner, Call)
        or not isinstance(inner.function, Named)
        or inner.function.path != BIT_GENERATOR
    ):
        raise PickleError("it has a random generator of an unknown kind")
    state = inner.state[0] if isinstance(inner.state, tuple) else inner.state
    bits = np.random.PCG64(0)
    bits.state = make.expect(state, dict)  # NumPy refuses the states of other kinds
    return np.random.Generator(bits)


# --- Gymnasium -------------------------------------------------------------------------------------------------------


def _space(make: Rebuild, call: Call, build: Callable[[dict[str, Any]], spaces.Space]) -> spaces.Space:
    state = make.expect(call.state, dict)
    space = build(state)
    # Random actions go on where they were.
    space._np_random = checked(state.get("_np_random"), np.random.Generator, type(None))
    return space


def _box(state: dict[str, Any]) -> spaces.Space:
    low, high = (checked(state[name], np.ndarray) for name in ("low", "high"))
    return spaces.Box(low, high, dtype=checked(state["dtype"], np.dtype).type)


def _discrete(state: dict[str, Any]) -> spaces.Space:
    return spaces.Discrete(int(state["n"]), start=int(state.get("start", 0)))


def _multi_discrete(state: dict[str, Any]) -> spaces.Space:
    return spaces.MultiDiscrete(state["nvec"], dtype=state["dtype"].type, start=state.get("start"))


def _multi_binary(state: dict[str, Any]) -> spaces.Space:
    return spaces.MultiBinary(state["n"])


def _dict_space(state: dict[str, Any]) -> spaces.Space:
    return spaces.Dict(OrderedDict(state["spaces"]))  # in the order in which they were saved


# --- Stable-Baselines3, and the rest ---------------------------------------------------------------------------------


def _from_state(kind: type, *names: str) -> Callable[[Rebuild, Call], Any]:
    """A recipe that calls a constructor with numbers of the state."""

    def recipe(make: Rebuild, call: Call) -> Any:
        state = make.expect(call.state, dict)
        return kind(*(checked(state[name], *NUMBER) for name in names))

    return recipe


def _float_schedule(make: Rebuild, call: Call) -> FloatSchedule:
    inner = make.expect(call.state, dict)["value_schedule"]
    return FloatSchedule(checked(inner, ConstantSchedule, LinearSchedule, FloatSchedule))


def _train_freq(make: Rebuild, call: Call) -> TrainFreq:
    frequency, unit = call.args
    return TrainFreq(make.expect(frequency, int), make.expect(unit, TrainFrequencyUnit))


def _unit(make: Rebuild, call: Call) -> TrainFrequencyUnit:
    return TrainFrequencyUnit(make.expect(call.args[0], str))


def _attribute(make: Rebuild, call: Call) -> TrainFrequencyUnit:
    """Some versions of Python pickle the members of an enumeration as ``getattr(its class, its name)``."""
    of, name = call.args
    if not isinstance(of, Named) or of.path != name_of(TrainFrequencyUnit):
        raise PickleError("it calls builtins.getattr")
    return TrainFrequencyUnit[make.expect(name, str)]


def _normal_noise(make: Rebuild, call: Call) -> noise.NormalActionNoise:
    state = make.expect(call.state, dict)
    mean, sigma = (checked(state[name], np.ndarray) for name in ("_mu", "_sigma"))
    return noise.NormalActionNoise(mean, sigma, checked(state["_dtype"], type))


def _noise_of_several(make: Rebuild, call: Call) -> noise.VectorizedActionNoise:
    state = make.expect(call.state, dict)
    return noise.VectorizedActionNoise(
        checked(state["_base_noise"], noise.NormalActionNoise), checked(state["n_envs"], int)
    )


def _deque(make: Rebuild, call: Call) -> deque[Any]:
    longest = call.args[1] if len(call.args) > 1 else None
    items = [*(make.make(call.args[0]) if call.args else ()), *(make.make(item) for item in call.items)]
    return deque(items, None if longest is None else make.expect(longest, int))


def _ordered_dict(make: Rebuild, call: Call) -> OrderedDict[Any, Any]:
    return OrderedDict((make._key(key), make.make(value)) for key, value in call.pairs)


def _path(make: Rebuild, call: Call) -> Path:
    return Path(*(make.expect(part, str) for part in call.args))


def _config(kind: Any) -> Callable[[Rebuild, Call], Any]:
    """A recipe for a dataclass of settings, whose constructor checks them."""

    def recipe(make: Rebuild, call: Call) -> Any:
        state = make.expect(call.state, dict)
        known = {part.name for part in fields(kind) if part.init}
        return kind(**{name: value for name, value in state.items() if name in known})

    return recipe


def _all_of(module: Any, base: type) -> list[type]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, base)]


BIT_GENERATOR = "numpy.random._pickle.__bit_generator_ctor"

# Classes that settings may name: those that a constructor's arguments choose from.
CLASSES: dict[str, type] = {
    name_of(kind): kind
    for kind in (
        np.float32, np.float64,
        *_all_of(buffers, buffers.BaseBuffer),
        *_all_of(policies, policies.BasePolicy),
        *_all_of(torch_layers, torch_layers.BaseFeaturesExtractor),
        *_all_of(torch.nn.modules.activation, torch.nn.Module),
        *_all_of(torch.optim, torch.optim.Optimizer),
    )
}  # fmt: skip


def _space_of(build: Callable[[dict[str, Any]], spaces.Space]) -> Callable[[Rebuild, Call], spaces.Space]:
    return lambda make, call: _space(make, call, build)


RECIPES: dict[str, Callable[[Rebuild, Call], Any]] = {
    "numpy.dtype": _dtype,
    "numpy.random._pickle.__generator_ctor": _generator,
    **{f"numpy.{core}.numeric._frombuffer": _array_of_a_buffer for core in ("_core", "core")},
    **{f"numpy.{core}.multiarray._reconstruct": _array_of_a_state for core in ("_core", "core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("_core", "core")},
    name_of(spaces.Box): _space_of(_box),
    name_of(spaces.Discrete): _space_of(_discrete),
    name_of(spaces.MultiDiscrete): _space_of(_multi_discrete),
    name_of(spaces.MultiBinary): _space_of(_multi_binary),
    name_of(spaces.Dict): _space_of(_dict_space),
    name_of(ConstantSchedule): _from_state(ConstantSchedule, "val"),
    name_of(LinearSchedule): _from_state(LinearSchedule, "start", "end", "end_fraction"),
    name_of(FloatSchedule): _float_schedule,
    name_of(TrainFreq): _train_freq,
    name_of(TrainFrequencyUnit): _unit,
    "builtins.getattr": _attribute,
    name_of(noise.NormalActionNoise): _normal_noise,
    name_of(noise.VectorizedActionNoise): _noise_of_several,
    "collections.deque": _deque,
    "collections.OrderedDict": _ordered_dict,
    **{
        f"{module}.{kind}Path": _path
        for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")
    },
    **{
        name_of(kind): _config(kind)
        for kind in (ControlConfig, JointConfig, FlowNetwork, FlowSampling, FlowTraining)
    },
}  # fmt: skip
