"""From training to figures on scikit-learn's digits, as one HTML page.

python examples/tour.py [--output=tour] [--steps=1000] [--model=resnet20]

It calls the programs as you would, so the page is also a list of commands to copy. A standard and a
pivot network are trained and compared; with 1,000 steps it takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import base64
import html
import pathlib
import subprocess
import sys

BIN = pathlib.Path(__file__).resolve().parent.parent / "bin"
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:.8em;overflow:auto;font-size:13px}img{max-width:100%}"
)
FIGURES = {
    "accuracy_curve": "How far the images can be perturbed, and which attack is the strongest.",
    "embedding_map": "Where the classes lie in the embedding, and where an attack moves an image.",
    "logits": "What one step of an attack does to the true logit and to the others.",
    "gradient_correlation": "How long the gradient of the clean image stays of use.",
    "noise_correlation": "Whether an attacker can craft images on one network for the other.",
    "loss_surface": "The loss around single images, along the gradient and elsewhere.",
}


class Page:
    """An HTML page that grows with what is done; pictures are inside it.

    Args:
        place: the directory in which the programs run.
    """

    def __init__(self, place: pathlib.Path):
        self.place = place
        self.parts: list[str] = []

    def say(self, heading: str, text: str = "") -> None:
        """Add a heading and a paragraph."""
        self.parts.append(f"<h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p>")

    def run(self, program: str, *flags: str) -> None:
        """Run a program and show its command and what it printed.

        Raises:
            SystemExit: the program failed.
        """
        shown = " ".join([f"bin/{program}", *flags])
        print(shown, flush=True)
        done = subprocess.run(
            [sys.executable, str(BIN / program), *flags],
            cwd=self.place,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"tour: {shown} failed")
        self.parts.append(f"<pre>$ {html.escape(shown)}\n{html.escape(done.stdout)}</pre>")

    def show(self, picture: pathlib.Path, caption: str) -> None:
        """Add a picture and its caption."""
        data = base64.b64encode((self.place / picture).read_bytes()).decode()
        self.parts.append(f'<img alt="{picture.stem}" src="data:image/png;base64,{data}">')
        self.parts.append(f"<details><summary>Caption</summary><pre>{html.escape(caption)}</pre>")
        self.parts.append("</details>")

    def write(self, file: pathlib.Path) -> None:
        """Write the page."""
        head = f"<!doctype html><meta charset=utf-8><title>Tour</title><style>{STYLE}</style>"
        file.write_text(head + "<h1>cascade_keras, a tour</h1>" + "".join(self.parts), "utf-8")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("tour"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model", default="resnet20", help="what is trained")
    parser.add_argument("--figures", nargs="*", default=list(FIGURES), choices=list(FIGURES))
    parser.add_argument("--images", type=int, help="test images that are attacked, fewer: sooner")
    given = parser.parse_args()
    fewer = [f"--num_images={given.images}"] if given.images else []
    given.output.mkdir(parents=True, exist_ok=True)
    page = Page(given.output)

    page.say("Train", "A network as usual, and one that is trained to resist adversarial images.")
    for loss in ("standard", "pivot"):
        page.run("train", "--dataset=digits", f"--model={given.model}", f"--loss={loss}",
                 f"--name={loss}", f"--steps={given.steps}",
                 *(flag.replace("num_images", "eval_examples") for flag in fewer))  # fmt: skip
    networks = "saved/standard,saved/pivot"
    page.say("Evaluate", "White box, with the strongest attack marked, and a diagnosis.")
    page.run("evaluate", f"--target={networks}", "--output=reports/tour", *fewer)
    page.show(pathlib.Path("reports/tour/white_box-76.5.png"), "Accuracy, epsilon 76.5")
    for name in given.figures:
        page.say(name, FIGURES[name])
        page.run("analyze", f"--figure={name}", f"--model={networks}", "--dataset=digits")
        caption = (given.output / "figures" / f"{name}.txt").read_text("utf-8")
        page.show(pathlib.Path(f"figures/{name}.png"), caption)
    page.write(given.output / "index.html")
    print(f"written to {given.output / 'index.html'}")


if __name__ == "__main__":
    main()
