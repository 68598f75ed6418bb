"""`co.nb`: plots of a node, as a notebook would show them."""

from __future__ import annotations

import io
import os
from typing import Any

from conducto import data

FOLDER = "conducto-plots"


def matplotlib_inline() -> None:
    """From now on `plt.show()` needs no screen: it keeps each open figure as a PNG.

    They are objects of the pipeline's data, `conducto-plots/<node>/<number>.png`, with a line of
    Markdown in the node's log that leads there; the page of the run shows them. Outside of a
    pipeline's node it raises ContextError. Needs matplotlib.
    """
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    folder = f"{FOLDER}/{os.environ.get('CONDUCTO_NODE', '').strip('/') or 'node'}"
    data.pipeline.exists(folder)  # there is a pipeline, or the reason is told before any plotting

    def show(*_: Any, **__: Any) -> None:
        number = len(data.pipeline.list(folder + "/"))
        for figure in pyplot.get_fignums():
            image = io.BytesIO()
            pyplot.figure(figure).savefig(image, format="png")
            name = f"{folder}/{number:04}.png"
            data.pipeline.puts(name, image.getvalue())
            print(f"![plot]({data.pipeline.url(name)})")
            number += 1
        pyplot.close("all")

    pyplot.show = show
