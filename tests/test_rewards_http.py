"""A reward that a server computes."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rewards import RewardError, RewardWarning, from_url, http

asked: list[list[str]] = []
headers: list[str | None] = []
busy: list[int] = []  # how often the server still says that it is busy


class Server(BaseHTTPRequestHandler):
    """Lengths of samples; what else it does is in the path."""

    def do_POST(self) -> None:
        samples = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
        asked.append(samples)
        headers.append(self.headers.get("Authorization"))
        scores = [len(s) for s in samples]
        what = self.path.strip("/")
        if what == "busy" and busy:
            busy.pop()
            return self.said("", 503)
        if what == "breaks" and "bad" in samples:
            return self.said("", 500)
        if what == "slow" and "slow" in samples:
            threading.Event().wait(1.0)
        if what == "drips":
            return self.dripped()
        if what.isdigit():
            return self.said("", int(what))
        answers = {
            "named": json.dumps({"other": [0] * len(samples), "size": scores}),
            "some": json.dumps([None, "no", float("nan"), float("inf"), 1][: len(samples)]),
            "short": json.dumps(scores[1:]), "text": "<html>", "long": json.dumps(["x" * 100_000]),
            "deep": "[" * 60_000, "number": "3", "empty": "{}",
        }  # fmt: skip
        return self.said(answers.get(what, json.dumps({"scores": scores})))

    def said(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "file:///etc/passwd")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def dripped(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(20):
                self.wfile.write(b" ")
                threading.Event().wait(0.1)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    asked.clear()
    headers.clear()
    busy.clear()
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)


def test_samples_are_posted_in_chunks_and_scores_come_back_in_order(url):
    reward = from_url(url, chunk=2, headers={"Authorization": "Bearer x"})
    assert reward(["C", "CCO", "CC"]).tolist() == [1, 3, 2]
    assert asked == [["C", "CCO"], ["CC"]] and headers == ["Bearer x"] * 2
    assert pickle.loads(pickle.dumps(reward))(["CCCC"]).tolist() == [4]
    assert from_url(url)(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [3, 3] and asked[-1] == [
        [1, 2, 3],
        [4, 5, 6],
    ]
    assert from_url(url + "named", endpoint="size")(["CC"]).tolist() == [2]


def test_scores_that_are_no_numbers_are_unknown(url):
    found = from_url(url + "some")(["a", "b", "c", "d", "e"])
    assert found[:4].isnan().all() and found[4] == 1


def test_a_sample_that_breaks_the_server_costs_itself_alone(url):
    reward = from_url(url + "breaks")
    samples = ["C", "CC", "bad", "CCC", "CCCC"]
    with pytest.warns(RewardWarning, match="no score for 1 of 5 samples, first: status 500"):
        found = reward(samples)
    assert found.isnan().tolist() == [False, False, True, False, False] and found[[0, 1, 3, 4]].tolist() == [1, 2, 3, 4]
    assert reward.failed == 1 and asked[-1] != samples


def test_a_busy_server_is_asked_again(url):
    busy.extend([1, 1])
    assert from_url(url + "busy", retries=2)(["CC"]).tolist() == [2] and len(asked) == 3
    busy.extend([1, 1])
    with pytest.warns(RewardWarning, match="status 503"):
        assert from_url(url + "busy", retries=1)(["CC"]).isnan().all()


def test_samples_that_are_not_answered_in_time_have_no_score(url):
    reward = from_url(url + "slow", timeout=0.3, chunk=1)
    with pytest.warns(RewardWarning, match=r"1 of 2 samples, first: no answer within 0.3 s"):
        found = reward(["slow", "CC"])
    assert found[0].isnan() and found[1] == 2
    with pytest.warns(RewardWarning, match="no answer within 0.3 s"):
        assert from_url(url + "drips", timeout=0.3)(["CC", "C"]).isnan().all()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("short", "returned 1 scores for 2 samples"),
        ("text", "answered no JSON: b'<html>'"),
        ("long", "answered more than 73,728 bytes for 2 samples"),
        ("deep", "answered no JSON"),
        ("number", "returned int scores for 2 samples"),
        ("empty", "has no endpoint"),
        ("404", r"refuses \(status 404\)"),
        ("302", "redirects elsewhere, which is not followed"),
    ],
)
def test_an_answer_that_is_none_is_an_error_that_names_the_server(url, path, said):
    with pytest.raises(RewardError, match=said):
        from_url(url + path)(["C", "CC"])


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(RewardError, match=r"http://127.0.0.1:9/ cannot be reached"):
        from_url("http://127.0.0.1:9/", retries=1)(["C"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "file:///etc/passwd"}, "an address is needed"),
        ({"url": "localhost:80"}, "an address is needed"),
        ({"timeout": 0}, "seconds above 0"),
        ({"retries": -1}, "retries=-1"),
        ({"chunk": True}, "chunk=True"),
    ],
)
def test_wrong_arguments_are_told_at_once(given, said):
    with pytest.raises(ValueError, match=said):
        from_url(**({"url": "http://localhost/"} | given))
