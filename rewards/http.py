r"""A reward that a server computes: samples are posted to a URL as JSON, and scores come back.

    POST {"samples": ["CCO", "c1ccccc1"]}      ->      [0.4, 0.5]  or  {"scores": [0.4, 0.5]}

An answer is what `from_command` takes too: a list of numbers in order, null, NaN and texts for samples without a score;
or an object of such lists, by endpoint. It is data and nothing else: it must be JSON, of a size that fits the samples,
with one score for each; and no redirection is followed.

What fails is told apart. A server that cannot be reached, or that refuses (401, 403, 404, 405), is an error. Where it
breaks on samples (400, 500 and the like), they are asked again in halves until those that break it are alone, and these
have no score. Samples that are not answered within the timeout have no score either.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib import error as errors, parse, request

from .base import Reward, _warn
from .external import scores_in

BUSY, REFUSED = (429, 502, 503, 504), (401, 403, 404, 405)
FOR_EACH, AT_LEAST = 4096, 65536  # bytes that an answer may have for each sample, and in any case
LONGEST = 60.0  # seconds that a busy server may ask to wait


class _Lost(Exception):
    """These samples have no score; `whole` if asking them apart would not help."""

    def __init__(self, why: str, whole: bool = False):
        super().__init__(why)
        self.whole = whole


class _Direct(request.HTTPRedirectHandler):
    def redirect_request(self, *given: Any) -> None:
        return None


_OPENER = request.build_opener(_Direct)


class Http(Reward):
    """A server as a reward; see `from_url`. `failed` counts the samples that it did not score."""

    def __init__(
        self,
        url: str,
        name: str | None,
        endpoint: str | None,
        headers: Mapping[str, str],
        timeout: float,
        retries: int,
        chunk: int,
    ):
        if not isinstance(url, str) or parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"from_url({url!r}): an address is needed, like http://localhost:8000/score")
        if not 0 < timeout < math.inf:
            raise ValueError(f"from_url(timeout={timeout}): seconds above 0")
        for what, value, least in (("retries", retries, 0), ("chunk", chunk, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"from_url({what}={value!r}): a whole number of at least {least}")
        self.url, self.endpoint, self.timeout, self.retries, self.chunk = url, endpoint, timeout, retries, chunk
        self.headers = {"Content-Type": "application/json", "Accept": "application/json", **headers}
        self.name, self.failed = name or endpoint or parse.urlsplit(url).netloc, 0

    def identity(self) -> Any:
        """What determines the scores, as opposed to how they are fetched."""
        return self.url, self.endpoint

    def score(self, samples: Any) -> list[float]:
        listed, lost = [_plain(sample) for sample in samples], list[str]()
        parts = [listed[i : i + self.chunk] for i in range(0, len(listed), self.chunk)]
        found = [score for part in parts for score in self._scored(part, lost)]
        if lost:
            self.failed += len(lost)
            _warn(self.name, f"got no score for {len(lost)} of {len(listed)} samples, first: {lost[0]}")
        return found

    def _scored(self, part: Sequence[Any], lost: list[str]) -> list[float]:
        """Scores of a part; where the server breaks on it, of its halves."""
        try:
            return self._asked(part)
        except _Lost as error:
            if len(part) == 1 or error.whole:
                lost += [str(error)] * len(part)
                return [math.nan] * len(part)
        half = len(part) // 2
        return self._scored(part[:half], lost) + self._scored(part[half:], lost)

    def _asked(self, part: Sequence[Any]) -> list[float]:
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                return self._posted(part)
            except errors.HTTPError as error:
                status, wait = error.code, error.headers.get("Retry-After", "")
                error.close()
                if status in BUSY and not last:
                    time.sleep(min(float(wait) if wait.isdigit() else 0.5 * 2**attempt, LONGEST))
                elif status < 400 or status in REFUSED:
                    what = "redirects elsewhere, which is not followed" if status < 400 else "refuses"
                    raise RuntimeError(f"{self.url} {what} (status {status})") from None
                else:
                    raise _Lost(f"status {status}") from None
            except TimeoutError:
                raise _Lost(f"no answer within {self.timeout:g} s", whole=True) from None
            except (errors.URLError, ConnectionError) as error:
                if isinstance(getattr(error, "reason", None), TimeoutError):
                    raise _Lost(f"no answer within {self.timeout:g} s", whole=True) from None
                if last:
                    raise RuntimeError(f"{self.url} cannot be reached: {getattr(error, 'reason', error)}") from error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _posted(self, part: Sequence[Any]) -> list[float]:
        """One request, and what it answers."""
        data = json.dumps({"samples": part}).encode()
        most = AT_LEAST + FOR_EACH * len(part)
        end = time.monotonic() + self.timeout
        with _OPENER.open(request.Request(self.url, data, self.headers), timeout=self.timeout) as answer:
            text = b""
            while len(text) <= most and (piece := answer.read1(65536)):
                text += piece
                if time.monotonic() > end:  # the time limit of a socket is that of each piece
                    raise TimeoutError
        if len(text) > most:
            raise ValueError(f"{self.url} answered more than {most:,} bytes for {len(part)} samples")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.url} answered no JSON: {text[:100]!r}") from error
        return scores_in(found, len(part), self.url, self.endpoint)


def _plain(sample: Any) -> Any:
    """A sample as JSON has it: a text, or lists of numbers."""
    return sample.tolist() if hasattr(sample, "tolist") else sample if isinstance(sample, str) else str(sample)


def from_url(
    url: str,
    name: str | None = None,
    *,
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    retries: int = 2,
    chunk: int = 64,
) -> Http:
    """A server that scores samples as a reward: {"samples": [...]} is posted, and a list of scores comes back.

    Wrap it in `Cached`, so that no sample is sent twice.

    endpoint   which of several scores to use; the first one by default
    headers    sent with each request, like {"Authorization": "Bearer ..."}
    timeout    seconds for one request; its samples have no score if it takes longer
    retries    after a connection that failed, or a server that says it is busy
    chunk      samples of one request
    """
    return Http(url, name, endpoint, headers or {}, timeout, retries, chunk)
