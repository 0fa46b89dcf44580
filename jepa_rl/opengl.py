"""Isolated OpenGL contexts: each draw makes its own context current, and restores the previous one afterwards.

An OpenGL call goes to whichever context is current in its thread. Gymnasium's MuJoCo viewers make theirs current
once, when they open, and dm_control remembers which one it made current last. If anything opens, draws or closes in
between, they draw into, or delete from, another context: pictures are black, or those of another environment.
``drawing`` is a context manager that prevents this, and ``keep_viewers_apart`` applies it to every draw of Gymnasium's
viewers in this process.

A context is current only while something draws with it, so that the next draw may come from another thread.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

# One draw at a time: software OpenGL uses all cores anyway, and the rest of this module needs no other lock.
_lock = threading.RLock()
_free_by_context: weakref.WeakKeyDictionary[Any, weakref.finalize] = weakref.WeakKeyDictionary()
_of_the_parent: list[Any] = []
_opening: Callable[[], AbstractContextManager[Any]] = nullcontext
_VIEWERS = "gymnasium.envs.mujoco.mujoco_rendering"


@contextmanager
def drawing(context: Any = None, last: bool = False) -> Iterator[None]:
    """Context manager: makes an OpenGL context current, and afterwards the one that was current before (or none).

    Args:
        context: one of MuJoCo's own ``GLContext``, of any backend; None if the code inside opens one itself.
        last: whether the code inside frees the context, which then cannot be made current again.

    Raises:
        RuntimeError: in a process forked from one that had already drawn; or if the context is current in another
            thread, where something outside this library draws with it.
    """
    check_not_forked()
    with _lock, _no_garbage_collection():
        before = {name: _LIBRARIES[name].note() for name in _loaded()}
        try:
            if context is not None:
                _make_current(context)
            if last:
                own = {name: _LIBRARIES[name].note() for name in before}
                before = {name: state for name, state in before.items() if not _same(state, own[name])}
            yield
            _fork.drawn = True
        finally:
            for name in _loaded():  # a library that has been loaded meanwhile had nothing current
                _LIBRARIES[name].put_back(before.get(name))


def check_not_forked() -> None:
    """Software OpenGL keeps threads, which a fork does not copy: the child would wait for them forever.

    Raises:
        RuntimeError: in a process forked from one that had already drawn.
    """
    if _fork.inherited:
        raise RuntimeError(
            "this process was forked from one that had already rendered, where OpenGL would hang; use "
            "AsyncVectorEnv(..., context='forkserver') or SubprocVecEnv(..., start_method='forkserver'), "
            "or render in the parent only after the workers have started"
        )


def keep_viewers_apart(opening: Callable[[], AbstractContextManager[Any]] | None = None) -> None:
    """Makes every viewer of Gymnasium's MuJoCo environments draw and close with its own context current.

    Patches Gymnasium's ``MujocoRenderer`` in this process, once, if it has been imported; otherwise there are no
    viewers, and nothing happens. Its pictures are then those of a process with a single environment.

    Args:
        opening: context manager entered while a viewer opens, which reads ``MUJOCO_GL``.
    """
    global _opening
    if opening is not None:
        _opening = opening
    module = sys.modules.get(_VIEWERS)
    if module is None or isinstance(module.MujocoRenderer.render, _Kept):
        return
    renderer = module.MujocoRenderer
    renderer.render, renderer.close = (
        _Kept(renderer.render, _render),
        _Kept(renderer.close, _close),
    )


class _Kept:
    """Descriptor that replaces a method of ``MujocoRenderer`` by ours, which is passed the original."""

    def __init__(self, original: Callable[..., Any], ours: Callable[..., Any]) -> None:
        self.__doc__ = original.__doc__
        self._original, self._ours = original, ours

    def __get__(self, renderer: Any, owner: type | None = None) -> Any:
        return self if renderer is None else functools.partial(self._ours, renderer, self._original)


def _render(renderer: Any, original: Callable[..., Any], render_mode: str | None) -> Any:
    if render_mode == "human":  # a window: GLFW's own affair
        return original(renderer, render_mode)
    viewer = renderer._viewers.get(render_mode)
    if viewer is not None:
        with drawing(viewer.opengl_context):
            return original(renderer, render_mode)
    with drawing(), _opening():
        picture = original(renderer, render_mode)
        viewer = renderer._viewers[render_mode]
        free_with(renderer, viewer.opengl_context, viewer.con)
        return picture


def _close(renderer: Any, original: Callable[..., Any]) -> None:
    for mode, viewer in list(renderer._viewers.items()):
        if mode == "human":
            continue
        del renderer._viewers[mode]
        # A viewer that was open before keep_viewers_apart has no entry yet.
        free = _free_by_context.get(viewer.opengl_context) or free_with(
            renderer, viewer.opengl_context, viewer.con
        )
        free()
    renderer.viewer = None
    if renderer._viewers:
        original(renderer)


def free_with(owner: object, context: Any, drawer: Any) -> Callable[[], Any]:
    """Frees an OpenGL context when its owner is garbage-collected, at the latest when Python exits.

    Args:
        owner: an object that neither ``context`` nor ``drawer`` refers to.
        context: one of MuJoCo's ``GLContext``.
        drawer: the ``mujoco.MjrContext`` that lives in it.

    Returns:
        A function that frees both at once; further calls do nothing.
    """
    free = weakref.finalize(owner, _free, context, drawer)
    free.atexit = False  # weakref's own turn may come when the OpenGL library has already shut down
    _free_by_context[context] = free
    atexit.unregister(_free_all)
    atexit.register(_free_all)  # the last registered function runs first
    return free


def _free_all() -> None:
    for free in list(_free_by_context.values()):
        free()


def _free(context: Any, drawer: Any) -> None:
    """Frees a context. MuJoCo deletes its objects from the current context, so this one is made current first."""
    if _fork.inherited:
        _of_the_parent.append((context, drawer))  # or their own __del__ would free them
        return
    with drawing(context, last=True):
        drawer.free()
        context.free()


def _make_current(context: Any) -> None:
    try:
        context.make_current()
    except Exception as error:  # each library has its own class of error
        raise RuntimeError(
            f"{type(context).__module__}'s context could not be made current in thread "
            f"{threading.current_thread().name!r} ({error}); if another thread had rendered this environment "
            "before it was wrapped, render it in that thread only, or make it anew"
        ) from error


# -- what is current in this thread -----------------------------------------------------------------


class _Library(NamedTuple):
    """How to read which context is current in this thread, and how to restore it.

    Attributes:
        note: the context and whatever else ``put_back`` needs; None if nothing is current.
        put_back: takes the result of ``note``.
    """

    note: Callable[[], tuple[Any, ...] | None]
    put_back: Callable[[tuple[Any, ...] | None], None]


def _same(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None) -> bool:
    """Whether two notes are of the same context."""
    if one is None or other is None:
        return one is other
    return _address(one[0]) == _address(other[0])


def _address(pointer: Any) -> int | None:
    return ctypes.cast(pointer, ctypes.c_void_p).value


def _egl_note() -> tuple[Any, ...] | None:
    from mujoco.egl import egl_ext as egl

    context = egl.eglGetCurrentContext()
    if not context:
        return None
    surfaces = [egl.eglGetCurrentSurface(which) for which in (egl.EGL_DRAW, egl.EGL_READ)]
    return context, egl.eglGetCurrentDisplay(), *surfaces


def _egl_put_back(before: tuple[Any, ...] | None) -> None:
    from mujoco import egl as opened
    from mujoco.egl import egl_ext as egl

    if before is not None:
        egl.eglBindAPI(egl.EGL_OPENGL_API)  # freeing a context resets it
        context, display, draw, read = before
        egl.eglMakeCurrent(display, draw, read, context)
    elif opened.EGL_DISPLAY is not None:
        egl.eglMakeCurrent(opened.EGL_DISPLAY, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, egl.EGL_NO_CONTEXT)


def _osmesa_note() -> tuple[Any, ...] | None:
    from mujoco.osmesa import osmesa  # PyOpenGL, which MuJoCo brings

    context = osmesa.OSMesaGetCurrentContext()
    if not context:
        return None
    width, height, _, buffer = osmesa.OSMesaGetColorBuffer(context)
    return context, buffer, osmesa.OSMesaGetIntegerv(osmesa.OSMESA_TYPE), width, height


def _osmesa_put_back(before: tuple[Any, ...] | None) -> None:
    from mujoco.osmesa import osmesa  # PyOpenGL, which MuJoCo brings

    osmesa.OSMesaMakeCurrent(*(before or (None, None, 0, 0, 0)))


def _glfw_note() -> tuple[Any, ...] | None:
    from mujoco.glfw import glfw

    window = glfw.get_current_context()
    return (window,) if window else None


def _glfw_put_back(before: tuple[Any, ...] | None) -> None:
    from mujoco.glfw import glfw

    glfw.make_context_current(before and before[0])


_LIBRARIES = {
    "egl": _Library(_egl_note, _egl_put_back),
    "osmesa": _Library(_osmesa_note, _osmesa_put_back),
    "glfw": _Library(_glfw_note, _glfw_put_back),
}


def _loaded() -> list[str]:
    return [name for name in _LIBRARIES if f"mujoco.{name}" in sys.modules]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Context manager: no garbage collection, which could free another viewer's context in the middle of a draw."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- forks ------------------------------------------------------------------------------------------


class _Fork:
    """Whether this process, or the one that it was forked from, has drawn."""

    def __init__(self) -> None:
        self.drawn = self.inherited = False
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(before=self._before, after_in_child=self._after)

    def _before(self) -> None:
        # Other code may have drawn as well; then threads of llvmpipe, Mesa's software renderer, exist.
        if not self.drawn and "mujoco" in sys.modules:
            self.drawn = any(name.startswith("llvmpipe") for name in _threads())

    def _after(self) -> None:
        global _lock
        _lock = threading.RLock()  # the parent's may have been held by another of its threads
        self.inherited = self.inherited or self.drawn


def _threads() -> Iterator[str]:
    """Names of this process's threads, those of libraries included (Linux; elsewhere none)."""
    for path in Path("/proc/self/task").glob("*/comm"):
        try:
            yield path.read_text().strip()
        except OSError:  # it has just ended
            continue


_fork = _Fork()
