"""The model zoo: trained networks that come with the package, and how they are made of runs.

    import cascade_keras as ck

    network = ck.load("mnist-resnet20-pivot")   # a Keras model of images in [0, 1]
    ck.zoo.names("mnist")

``presets/`` has a folder for each, see ``cascade_keras.presets``.
"""

from cascade_keras.lazy import exports

_HOMES = {
    "Entry": "leaderboard",
    "Robustness": "robustness",
    "ZooSettings": "settings",
    "entries": "leaderboard",
    "leaderboard": "",
    "load": "loading",
    "make": "making",
    "names": "loading",
    "robustness": "",
}
__getattr__, __dir__ = exports(__name__, _HOMES)
