"""The paper's figures, and some more."""

from cascade_keras.figures.plots import *  # noqa: F403
