"""Off-screen rendering of MuJoCo simulations: choice of the OpenGL library, and a renderer that keeps its context.

Needs dm_control (``pip install "jepa-rl[dmc]"``) when used, not when imported.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from jepa_rl import opengl

INSTALL_HINT = (
    "install one with `apt-get install libegl1 libgl1-mesa-dri` or `apt-get install libosmesa6` "
    "(MUJOCO_GL=egl or MUJOCO_GL=osmesa chooses); observation='state' without render() needs none"
)
_EGL_PLATFORM_DEVICE = 0x313F


def find_backend() -> str:
    """The OpenGL library to render with: ``"egl"``, ``"osmesa"`` or ``"glfw"``.

    The value of ``MUJOCO_GL`` if it is set, then that of ``PYOPENGL_PLATFORM``; otherwise the first of EGL and OSMesa
    that works (GLFW outside Linux).

    Raises:
        gymnasium.error.DependencyNotInstalled: if none works, or the chosen one does not.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in ("disable", "disabled", "off", "false", "0"):
        raise DependencyNotInstalled(f"MUJOCO_GL={asked} turns rendering off; unset it to see pictures")
    if asked in ("", "enable", "enabled", "on", "true", "1"):
        asked = os.environ.get("PYOPENGL_PLATFORM", "").lower().strip()
    if asked == "glfw" or (not asked and platform.system() != "Linux"):
        return "glfw"
    works = {"egl": _egl_works, "osmesa": lambda: ctypes.util.find_library("OSMesa") is not None}
    if asked and asked not in works:
        raise DependencyNotInstalled(f"MUJOCO_GL must be 'egl', 'osmesa' or 'glfw', got {asked!r}")
    for name in [asked] if asked else works:
        if works[name]():
            return name
    tried = asked or "egl, osmesa"
    raise DependencyNotInstalled(f"found no working OpenGL library (tried {tried}); {INSTALL_HINT}")


@contextmanager
def backend_environment() -> Iterator[None]:
    """Context manager: ``MUJOCO_GL`` is the backend found (or ``"disabled"``) while dm_control is being imported.

    Otherwise dm_control tries EGL first and, if that fails, can no longer load OSMesa.
    """
    before = os.environ.get("MUJOCO_GL")
    try:
        os.environ["MUJOCO_GL"] = find_backend()
    except DependencyNotInstalled:
        os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


class Renderer:
    """Renders one camera of a dm_control physics at one size; keeps its OpenGL context between pictures.

    ``fast=True`` changes pictures, not only speed: no shadows, reflections, skybox (the background
    is black), haze and multisampling, and curved shapes get one facet per six pixels of the picture's
    height instead of 28. Both looks use a buffer of the picture's own size, not MuJoCo's 640x480.

    Pictures per second at 64x64, one core, llvmpipe, each line added to the one above::

                                        cartpole  walker  ball_in_cup
        dm_control's physics.render()         58      54           28
        context and scene kept                67      51           29
        no shadows                           358      92           74
        no reflections                       637     209           91
        no skybox, no haze                   773     214           94
        no multisampling                   2,204     914          401
        buffer of 64x64                    2,618     974          406
        10 facets per circle               4,741   3,099        2,234

    The time of ball_in_cup depends on its vertices, not on pixels: cup and string are many capsules.
    Every renderer draws with its own context (``jepa_rl.opengl``), from any thread.
    ``LP_NUM_THREADS=0`` in the environment (llvmpipe without threads of its own) gives up to 50% more pictures.

    Args:
        physics: a ``dm_control.mujoco.Physics``.
        size: height and width in pixels.
        camera: number or name of a fixed camera, -1 for MuJoCo's free camera.
        fast: whether to use the fast look.

    Raises:
        ValueError: if the model has no such camera.
        gymnasium.error.DependencyNotInstalled: if no OpenGL library works.
        RuntimeError: in a process forked from one that had already rendered.
    """

    def __init__(self, physics: Any, size: int, camera: int | str = 0, fast: bool = False) -> None:
        import mujoco
        from dm_control.mujoco import wrapper

        self._camera = _camera_view(physics.model, camera)
        opengl.check_not_forked()
        self._physics = physics
        context_class = _context_class()
        with opengl.drawing(), _quality(physics.model.vis, size, fast):
            self._gl = _open_context(context_class, size)
            self._context = mujoco.MjrContext(physics.model.ptr, mujoco.mjtFontScale.mjFONTSCALE_150)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(physics.model.ptr, maxgeom=10_000)
        if fast:
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
                self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option, self._perturb = wrapper.MjvOption(), mujoco.MjvPerturb()
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._buffer = np.empty((size, size, 3), np.uint8)
        self._free = opengl.free_with(self, self._gl, self._context)

    def render(self) -> np.ndarray:
        """A picture of the present state of the physics: a new uint8 array (size, size, 3)."""
        import mujoco

        model, data = self._physics.model.ptr, self._physics.data.ptr
        with opengl.drawing(self._gl):
            mujoco.mjv_updateScene(
                model,
                data,
                self._option,
                self._perturb,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            mujoco.mjr_render(self._rect, self._scene, self._context)
            mujoco.mjr_readPixels(self._buffer, None, self._rect, self._context)
            return self._buffer[::-1].copy()  # OpenGL's first row is the bottom one

    def reload_terrain(self) -> None:
        """Uploads height fields that changed in the model (quadruped-escape makes one per episode)."""
        import mujoco

        if self._physics.model.nhfield:
            with opengl.drawing(self._gl):
                for field in range(self._physics.model.nhfield):
                    mujoco.mjr_uploadHField(self._physics.model.ptr, self._context, field)

    def close(self) -> None:
        """Free the OpenGL context. A second call does nothing."""
        self._free()


def _open_context(context_class: type, size: int) -> Any:
    try:
        context = context_class(size, size)
        context.make_current()
    except Exception as error:  # each library has its own class of error
        raise DependencyNotInstalled(f"OpenGL could not start ({error}); {INSTALL_HINT}") from error
    return context


@functools.cache
def _context_class() -> type:
    """MuJoCo's context class for ``find_backend()``, independent of what other libraries chose when imported."""
    backend = find_backend()
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext
    except (ImportError, AttributeError, OSError) as error:
        raise DependencyNotInstalled(f"{backend} could not be loaded ({error}); {INSTALL_HINT}") from error


@contextmanager
def _viewer_environment() -> Iterator[None]:
    """Context manager: ``MUJOCO_GL`` is set while Gymnasium's viewer opens, which otherwise fails without a display."""
    if "MUJOCO_GL" in os.environ:
        yield
        return
    os.environ["MUJOCO_GL"] = find_backend()
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def keep_viewers_apart() -> None:
    """Makes Gymnasium's MuJoCo environments, if there are any, find OpenGL and draw with their own contexts."""
    opengl.keep_viewers_apart(_viewer_environment)


def _camera_view(model: Any, camera: int | str) -> Any:
    import mujoco

    names = [model.id2name(i, "camera") for i in range(model.ncam)]
    if isinstance(camera, str) and camera not in names:
        raise ValueError(f"camera must be one of {names}, got {camera!r}")
    index = names.index(camera) if isinstance(camera, str) else camera
    if not -1 <= index < model.ncam:
        raise ValueError(
            f"camera must lie in [-1, {model.ncam - 1}] (-1 is the free camera) or be one of {names}, "
            f"got {camera}"
        )
    view = mujoco.MjvCamera()
    if index == -1:
        mujoco.mjv_defaultFreeCamera(model.ptr, view)
    else:
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
    return view


@contextmanager
def _quality(vis: Any, size: int, fast: bool) -> Iterator[None]:
    """Context manager: changes settings that MuJoCo reads while it builds a context, and restores them afterwards."""
    buffer = {"offwidth": size, "offheight": size}
    detail: dict[str, int] = {}
    if fast:
        facets = min(vis.quality.numslices, max(8, size // 6))
        detail = {"offsamples": 0, "shadowsize": 0, "numslices": facets, "numstacks": max(4, facets // 2)}
    wanted = [(vis.global_, key, value) for key, value in buffer.items()]
    wanted += [(vis.quality, key, value) for key, value in detail.items()]
    before = [getattr(part, key) for part, key, _ in wanted]
    try:
        for part, key, value in wanted:
            setattr(part, key, value)
        yield
    finally:
        for (part, key, _), value in zip(wanted, before, strict=True):
            setattr(part, key, value)


def _egl_works() -> bool:
    """Whether EGL has a device that can be initialised.

    Tested through ctypes, because a failed test through PyOpenGL leaves the process unable to load OSMesa.
    The display is not terminated: another library of this process may be using it.
    """
    name = ctypes.util.find_library("EGL")
    if name is None:
        return False
    try:
        egl = ctypes.CDLL(name)
    except OSError:
        return False
    egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_address)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
        display_address
    )
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    if not query(len(devices), devices, ctypes.byref(count)):
        return False
    displays = [get_display(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value]]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
