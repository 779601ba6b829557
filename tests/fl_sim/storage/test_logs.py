import json
import logging
import pickle
import warnings

import pytest

from fl_sim.storage.logs import collected, log_file, replay

log = logging.getLogger("fl_sim.test")


def lines(path):
    return list(map(json.loads, path.read_text().splitlines()))


def test_each_event_is_one_line_of_json_with_its_facts(tmp_path):
    path = tmp_path / "log.jsonl"
    for text in ("one", "two\nlines"):
        with log_file(path):
            log.info("said %s", text, extra={"event": "said", "round": 3})
            log.debug("not this")
    first, second = lines(path)
    assert first["message"] == "said one"
    assert (first["level"], first["logger"]) == ("info", "fl_sim.test")
    assert (first["event"], first["round"]) == ("said", 3)
    assert second["message"] == "said two\nlines"
    log.warning("after the block")
    assert len(lines(path)) == 2


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ({}, ["bad", "worse"]),
        ({"quiet": True}, ["worse"]),
        ({"verbose": True}, ["fine", "usual", "bad", "worse"]),
    ],
)
def test_a_terminal_shows_what_it_is_asked_to(tmp_path, capsys, flags, shown):
    with log_file(tmp_path / "log.jsonl", **flags) as counted:
        log.info("fine")
        log.warning("usual", extra={"event": "stalled", "routine": True})
        log.warning("bad")
        log.error("worse")
    text = capsys.readouterr().err
    assert [word for word in ("fine", "usual", "bad", "worse") if word in text] == shown
    assert counted == ({} if "quiet" in flags else {"stalled": 1})
    assert len(lines(tmp_path / "log.jsonl")) == 4


def test_what_another_process_said_arrives(tmp_path):
    with collected() as records:
        log.warning("dropped %d", 3, extra={"event": "dropped"})
        warnings.warn("strange", RuntimeWarning, stacklevel=1)
    with log_file(tmp_path / "log.jsonl"):
        replay(pickle.loads(pickle.dumps(records)))
    own, foreign = lines(tmp_path / "log.jsonl")
    assert (own["message"], own["event"]) == ("dropped 3", "dropped")
    assert "strange" in foreign["message"]
