"""The table of passive and active attacks side by side."""

import pandas as pd

from benchmarks.malicious import best, side_by_side


def line(quantizer, server, batch, share, psnr, commit):
    return {
        "quantizer": quantizer,
        "server": server,
        "batch": batch,
        "local steps": 1,
        "MSE < 1e-2 %": share,
        "median PSNR dB": psnr,
        "commit": commit,
    }


def test_each_quantizer_has_the_best_passive_and_the_best_active_attack():
    active = pd.DataFrame(
        [
            line("sign", "thresholds", 8, 90, 30.0, "b"),
            line("sign", "thresholds:levels=1", 8, 90, 31.0, "b"),
            line("none", "thresholds", 8, 5, 12.0, "b"),
        ]
    )
    passive = pd.DataFrame([line("sign", "curious", 1, 50, 20.0, "a")])
    found = side_by_side([best(active), passive])
    assert list(found) == ["quantizer", "passive, batch 1", "active, batch 8", "commit"]
    assert found["quantizer"].tolist() == ["none", "sign"]
    assert found["active, batch 8"].tolist() == ["5 %, 12.0 dB", "90 %, 31.0 dB"]
    assert found["passive, batch 1"].isna().tolist() == [True, False]
    assert found["commit"].tolist() == ["b", "a, b"]
    more = pd.DataFrame([line("none", "curious", 1, 100, 60.0, "c")])
    assert side_by_side([found, more])["passive, batch 1"].tolist() == [
        "100 %, 60.0 dB",
        "50 %, 20.0 dB",
    ]
