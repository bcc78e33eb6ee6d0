"""What the programs do, from Python: train, craft a bank, train a cascade, evaluate, draw.

    python examples/from_python.py

Each object is made of settings, which are the flags of a program, or of networks and datasets in
memory, and can be run again where it was interrupted. Everything is kept below the directory it
runs in, as by the programs. About two minutes on two cores.
"""

from __future__ import annotations

from cascade_keras import (
    Crafting,
    CraftSettings,
    Evaluation,
    EvaluationSettings,
    Figure,
    FigureSettings,
    Training,
    TrainingSettings,
)


def main(
    steps: int = 300, model: str = "resnet8", images: int = 360, banked: int | None = None
) -> dict:
    """Return the report of a network and of the cascade network that was trained from it.

    Args:
        steps, model: of both trainings.
        images: how many test images are attacked.
        banked: how many training images the bank has; all when None.
    """
    common = TrainingSettings(
        dataset="digits", model=model, loss="pivot", steps=steps, max_epsilon=16, name="pivot"
    )
    Training(common).run()

    # Its adversarial images of the training split, which the cascade network learns from. Training
    # would craft them itself where they are missing.
    chosen = CraftSettings(source="saved/pivot", epsilons=range(1, 17), examples=banked)
    bank = Crafting(chosen).run()
    print(f"{bank.path}: {bank.images.shape} uint8")

    cascade = common.replace(name="cascade", cascade_source=["saved/pivot"], cascade_mode="bank")
    print(Training(cascade).run().results)

    networks = ["saved/pivot", "saved/cascade"]
    report = Evaluation(
        EvaluationSettings(
            target=networks,
            source=networks,
            attack=["step_ll", "iter_fgsm"],
            epsilon=[8, 16],
            num_images=images,
            output="reports/cascade",
        )
    ).run()
    Figure(FigureSettings(figure="noise_correlation", model=networks, num_images=images)).draw()
    return report


if __name__ == "__main__":
    main()
