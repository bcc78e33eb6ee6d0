"""Which attacks make up AutoAttack: its versions, and what few classes leave of them.

Needs no TensorFlow.
"""

from __future__ import annotations

VERSIONS = ("fast", "standard", "rand")
TARGETS = 9  # classes that the targeted attacks aim at
AVERAGE = 20  # gradients that a step averages where a network is randomised


def stages_of(version: str, classes: int, queries: int) -> tuple[str, ...]:
    """Return the attacks of a version, in turn: names of ``AttackSpec.stages`` of its row.

    The difference of logits ratio needs three classes, the targeted one four. With three, APGD
    ascends the untargeted ratio in its place; with two FAB, which needs no more, stands in for it.

    Args:
        version: one of ``VERSIONS``.
        classes: that the network tells apart.
        queries: of the square attack; 0 leaves it out.
    """
    ratio = {2: (), 3: ("apgd_dlr",)}
    if version == "rand":
        return ("apgd", *ratio.get(classes, ("apgd_dlr",)))
    targeted = ratio.get(classes, ("apgd_targeted",))
    if version == "fast":
        return ("apgd", *(targeted or ("fab",)))
    return ("apgd", *targeted, "fab", *(("square",) if queries else ()))


def options_of(
    stage: str, version: str, classes: int, iterations: int, queries: int
) -> dict[str, int | str]:
    """Return the options of a stage, as the row of its attack names them, see ``attack_of``."""
    average = AVERAGE if version == "rand" else 1
    aimed: dict[str, int | str]
    aimed = {"iterations": iterations, "targets": min(TARGETS, classes - 1)}
    rows: dict[str, dict[str, int | str]] = {
        "apgd": {"iterations": iterations, "average": average},
        "apgd_dlr": {"iterations": iterations, "average": average, "objective": "dlr"},
        "apgd_targeted": aimed,
        "fab": aimed,
        "square": {"queries": queries},
    }
    return rows[stage]


def attack_of(stage: str) -> str:
    """Return the name of the attack that a stage is, with options of its own."""
    return "apgd" if stage == "apgd_dlr" else stage


def left_out(version: str, classes: int) -> list[str]:
    """Return what there is to say of stages that few classes leave out: a sentence, or none."""
    name = f"autoattack ({version}) leaves out"
    if classes == 2:
        without = "apgd_dlr, which needs 3" if version == "rand" else "apgd_targeted, which needs 4"
        instead = "; fab stands in for it" if version == "fast" else ""
    elif classes == 3 and version != "rand":
        without = "apgd_targeted, which needs 4"
        instead = "; apgd ascends the untargeted difference of logits ratio instead"
    else:
        return []
    return [f"{name} {without} classes and is given {classes}{instead}."]
