"""A bundle as something that can be evaluated: it predicts what it predicts for its users, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from groundglass.evaluation.evaluate import NetworkOutputs
from groundglass.imaging.slice import CTSlice
from groundglass.inference.bundle import DEFAULT, DEFAULT_NAME, Bundle
from groundglass.inference.input_check import unfit


class BundledRun:
    """Wraps a bundle for :func:`groundglass.evaluation.evaluate.evaluate`.

    Slices that the bundle would refuse are predicted all the same: a measurement leaves nothing out. Which
    they are is said beside, and how far each slice lies from the training data.
    """

    def __init__(self, bundle: Bundle) -> None:
        # The installed one has the same name on every machine.
        self.bundle, self.path = bundle, Path(DEFAULT_NAME) if bundle.path == DEFAULT else bundle.path
        self.calibration, training = bundle.info.calibration, bundle.info.training
        self.info: Mapping[str, Any] = {
            "finished": True,
            "recipe": str(training.get("recipe", "")),
            "network": str(bundle.info.network.get("name", "")),
            "seed": int(training.get("seed", 0)),
            "split": str(training.get("split", "")),
            "training_sha256": training.get("sha256", ()),
            "training_seconds": training.get("seconds"),
            "versions": training.get("versions") or {},
        }

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        """Predict slices one by one as the bundle's users do; refused ones too, but with the reason."""
        bundle, engine = self.bundle, self.bundle.engine()
        cuts, outputs, refused = [], [], []
        for ct_slice in slices:
            cut = bundle.preprocessing.apply(ct_slice.pixels, bundle.lungs(ct_slice.pixels))
            output = engine.run(bundle.preprocessing.normalise(cut.pixels[None]))
            refused.append(unfit(ct_slice, cut) or bundle.input_check.refusal(ct_slice, cut, output.embedding[0]))
            cuts.append(cut)
            outputs.append(output)
        logit = np.array([output.logit[0] for output in outputs], np.float64)
        embedding = np.concatenate([output.embedding for output in outputs])
        maps = [output.lesion_map for output in outputs if output.lesion_map is not None]
        return NetworkOutputs(
            logit,
            np.array([self.calibration.probability(value) for value in logit], np.float64),
            np.concatenate(maps) if maps else None,
            cuts,
            refused,
            None if bundle.reference is None else bundle.reference.percentile(embedding),
        )
