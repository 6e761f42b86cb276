import pandas as pd

from conceptome.figures import captions


def test_the_best_feature_of_a_baseline_is_told_with_interval_and_null():
    frame = pd.DataFrame(
        {
            "dataset": "cells",
            "model": ["vit", "intensity", "intensity", "intensity"],
            "label": "compound",
            "term": ["drug", "drug", "drug", "DMSO"],
            "auroc": [0.99, 0.6, 0.1, 0.8],
            "low": [0.9, 0.5, 0.05, 0.7],
            "high": [1, 0.7, 0.2, 0.9],
            "null_effect": 0.65,
        }
    )
    cards = {"cells": {"study": {"baselines": {"intensity": {}}}}}
    (told,) = captions.baselines(cards, frame, "auroc", ["label", "term"], 0.5)
    assert "cells/intensity compound DMSO 0.80 (0.70 to 0.90; null 0.65), compound drug 0.10 (0.05 to 0.20" in told
    assert "vit" not in told
    assert captions.baselines({"cells": {}}, frame, "auroc", ["label", "term"]) == []
