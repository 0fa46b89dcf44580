"""Hues as tests measure them: around the grey axis of YIQ, whose numbers are not taken from the code under test."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
CHROMA = np.array([(0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])


def hue_and_chroma(colours):
    """Degrees, and how far from grey, of RGB colours "... 3"."""
    i, q = np.moveaxis(np.asarray(colours, float) @ CHROMA.T, -1, 0)
    return np.rad2deg(np.arctan2(q, i)), np.hypot(i, q)


def turned(after, before):
    """Degrees from one hue to another, -180 to 180."""
    return (after - before + 180) % 360 - 180
