"""Streams: a pack in random order in a bucket, read chunk by chunk as from the pack, whatever the storage does."""

from __future__ import annotations

import csv
import http.server
import multiprocessing
import os
import pickle
import threading
import urllib.request

import boto3
import numpy as np
import pytest
import torch

from ussl import recipe
from ussl.cli import main
from ussl.data import manifest, remote, shards
from ussl.data.loader import Loader
from ussl.data.pictures import read as decoded
from ussl.data.stream import HEAD, LITDATA, ROWS
from ussl.plugins import Host
from ussl_plugins.samplers.chunked import Chunked
from ussl_plugins.sources.pack import Pack
from ussl_plugins.sources.stream import Stream

CHUNK = 8000  # bytes, of some 6 pictures
RECIPE = """
from: small/mae
source: {name: streamed}
sampler: {name: in_chunks}
train: {steps: 2, batch_size: 8, micro_batch: 4}
probes: null
"""
PLUGIN = """
from ussl.hookspecs import hookimpl
from ussl_plugins.samplers.chunked import Chunked
from ussl_plugins.sources.stream import Stream

class Streamed(Stream):
    '''A stream.'''

class InChunks(Chunked):
    '''Its order.'''

@hookimpl
def ussl_sources():
    return {"streamed": Streamed}

@hookimpl
def ussl_samplers():
    return {"in_chunks": InChunks}
"""


@pytest.fixture(autouse=True)
def keys(monkeypatch, tmp_path):
    """Credentials in the environment, and no others; caches under tmp_path."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    said = {"ACCESS_KEY_ID": "tester", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in (said | {"MAX_ATTEMPTS": "2", "EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A pack of 30 pictures, grey and colour, some scaled down, and its rows."""
    from PIL import Image

    folder, rows = tmp_path_factory.mktemp("corpus"), []
    for i in range(30):
        shape = (36 + i % 3, 50, 3) if i % 5 == 0 else (32 if i % 2 else 64, 40 + i)
        path = folder / f"set {i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)).save(path)
        rows.append({"path": str(path), "organ": "liver" if i % 3 else "breast", "patient": f"0{i}"})
    manifest.write(rows, folder / "corpus.parquet")
    words = ["data", "pack", str(folder / "corpus.parquet"), "--workers", "1", "--short-side", "32"]
    assert main(words) == 0
    return folder / "corpus.pack"


@pytest.fixture(scope="module")
def stream(corpus, tmp_path_factory):
    """The folder of its stream."""
    out = tmp_path_factory.mktemp("streams") / "a stream"
    assert made(corpus, out) == 0
    return out


@pytest.fixture(scope="module")
def server():
    """The address of S3-compatible storage on this machine."""
    from moto.server import ThreadedMotoServer

    storage = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    storage.start()
    host, port = storage.get_host_and_port()
    yield f"http://{host}:{port}"
    storage.stop()


@pytest.fixture
def bucket(server, stream):
    """A client of storage that holds the stream at s3://corpora/us/v1, as it was made."""
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="corpora")
    for path in stream.iterdir():
        client.upload_file(str(path), "corpora", f"us/v1/{path.name}")
    yield client
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).close()


@pytest.fixture
def source(bucket, server, tmp_path):
    """source(**options): what reads that stream, with a cache that holds two of its chunks."""

    def source(**options):
        known = {"path": "s3://corpora/us/v1", "endpoint": server, "cache": tmp_path / "cache"}
        return Stream(**known | {"max_cache_gb": 2.2 * CHUNK / 1e9} | options)

    return source


def made(pack, out, *more):
    return main(["data", "stream", str(pack), "-o", str(out), "--chunk-mb", str(CHUNK / 2**20), *more])


def files(folder):
    """The bytes of a stream; litdata writes the time into its own index."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LITDATA}


def name_of(row):
    return "/".join(row["path"].split(os.sep)[-2:])


def in_pack(pack):
    """Row and picture by name, as the pack has them."""
    reader = Pack(path=pack)
    return {name_of(row): (row, reader.read(row)) for row in reader.rows()}


def batches(rows, reader, workers):
    """Two epochs of batches of 6."""
    loader = Loader(rows, {"it": reader}, Chunked(), seed=3, batch_size=6, micro_batch=6, workers=workers)
    return [batch for _, batch in loader.batches(0, 10)]


def metrics(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def cached(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_stream_holds_every_picture_of_the_pack_bit_for_bit(corpus, stream):
    wanted, reader = in_pack(corpus), Stream(path=stream)
    rows = list(reader.rows())
    assert sorted(row["path"] for row in rows) == sorted(wanted)
    for row in rows:
        packed, picture = wanted[row["path"]]
        np.testing.assert_array_equal(reader.read(row), picture)
        kept = {key: cell for key, cell in packed.items() if key not in ("path", "shard", "offset", "reader")}
        assert {key: row[key] for key in kept} == kept


def test_litdata_itself_reads_the_pictures_in_the_order_of_the_rows(corpus, stream):
    import litdata

    wanted, rows = in_pack(corpus), list(Stream(path=stream).rows())
    dataset = litdata.StreamingDataset(str(stream))
    assert len(dataset) == len(rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(dataset[i], wanted[row["path"]][1])


def test_the_order_is_random_and_the_seed_decides_it(corpus, stream, tmp_path):
    places = [row["path"] for row in Stream(path=stream).rows()]
    in_order = [name_of(row) for row in shards.rows(corpus)]
    assert sum(a == b for a, b in zip(places, in_order, strict=True)) < 6  # of 30; one is expected
    assert made(corpus, tmp_path / "same") == made(corpus, tmp_path / "other", "--seed", "1") == 0
    assert files(tmp_path / "same") == files(stream)
    assert [row["path"] for row in Stream(path=tmp_path / "other").rows()] != places


def test_every_file_is_written_and_no_path_of_this_machine(stream):
    content = files(stream)
    assert {HEAD, ROWS} < content.keys()
    assert sum(name.startswith("chunk-") for name in content) > 4
    assert (stream / LITDATA).is_file()
    assert all(len(data) <= 1.1 * CHUNK for name, data in content.items() if name.startswith("chunk-"))
    assert not any(os.path.isabs(row["path"]) for row in Stream(path=stream).rows())


def test_a_stream_is_replaced_only_when_asked_to(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert made(corpus, out) == 0
    before = files(out)
    assert made(corpus, out, "--seed", "2") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert files(out) == before
    assert made(corpus, out, "--seed", "2", "--overwrite") == 0
    assert files(out) != before
    (out / "notes.txt").write_text("mine")
    assert made(corpus, out, "--overwrite") == 2
    assert "notes.txt" in capsys.readouterr().err
    assert made(corpus, corpus) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_a_killed_process_left_is_done_anew(corpus, stream, tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "chunk-0-0.bin").write_bytes(b"half of it")
    (tmp_path / ".out.part" / LITDATA).write_text("{}")
    assert made(corpus, tmp_path / "out") == 0
    assert files(tmp_path / "out") == files(stream)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--chunk-mb", "0"], "above 0"),
        (["--chunk-mb", "4096"], "at most 2048"),
        (["--chunk-mb", "0.001"], "largest picture"),
        (["--seed", "-1"], "0 or more"),
        (["--overwrite"], "no stream"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(corpus, tmp_path, capsys, words, told):
    assert made(corpus, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_damaged_pack_is_not_streamed(corpus, tmp_path, capsys):
    import shutil

    pack = tmp_path / "corpus.pack"
    shutil.copytree(corpus, pack)
    shard = next(pack.glob("shard-*.bin"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert made(pack, tmp_path / "out") == 2
    assert "not those packed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.pack"]


def test_chunked_takes_every_image_once_and_chunk_after_chunk():
    rows = [{"chunk": i // 7} for i in range(40)]
    orders = [Chunked().order(rows, 5, epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(40))
        chunks = order // 7
        assert (np.diff(chunks) != 0).sum() == 5  # six stretches
        assert any((np.diff(order[chunks == chunk]) < 0).any() for chunk in range(5))
    assert len({tuple(dict.fromkeys((order // 7).tolist())) for order in orders}) == 3
    np.testing.assert_array_equal(Chunked().order(rows, 5, 1), orders[1])


def test_chunked_needs_chunks():
    with pytest.raises(ValueError, match=r"column `chunk`, which 1 of 2 images lack"):
        Chunked().order([{"chunk": 0}, {"path": "a"}], 0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_pack_though_the_cache_holds_two_chunks(corpus, source, tmp_path, workers):
    reader = source()
    rows = [row | {"reader": "it"} for row in reader.rows()]
    of_pack = in_pack(corpus)
    packed = [of_pack[row["path"]][0] | {"reader": "it", "chunk": row["chunk"]} for row in rows]
    expected, found = batches(packed, Pack(path=corpus), 0), batches(rows, reader, workers)
    assert len(found) == len(expected) == 10
    for a, b in zip(found, expected, strict=True):
        for name in ("pixels", "box", "scale", "index", "turn"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.labels.keys() == b.labels.keys()
        assert all(torch.equal(a.labels[name], b.labels[name]) for name in a.labels)
    assert any((batch.scale != 1).any() for batch in found)
    assert cached(tmp_path / "cache") <= 2.2 * CHUNK


@pytest.mark.parametrize("workers", ["0", "2"])
def test_it_trains_from_a_bucket_as_from_the_folder(bucket, server, stream, write, tmp_path, workers):
    words = ["fit", "--recipe", str(write("recipe.yaml", RECIPE)), "--plugin", str(write("streamed.py", PLUGIN))]
    words += ["--loader.workers", workers]
    cache = ["--source.cache", str(tmp_path / "cache"), "--source.max_cache_gb", str(2.2 * CHUNK / 1e9)]
    away = ["--data", "s3://corpora/us/v1", "--source.endpoint", server, *cache]
    assert main([*words, *away, "--out", str(tmp_path / "far")]) == 0
    assert main([*words, "--data", str(stream), "--out", str(tmp_path / "near")]) == 0
    far, near = (metrics(tmp_path / run) for run in ("far", "near"))
    assert len(far) == len(near) == 2
    assert [row["loss"] for row in far] == [row["loss"] for row in near]
    assert "s3://corpora/us/v1" in (tmp_path / "far" / "recipe.yaml").read_text()
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "far").glob("*.*") if path.is_file())


def look(reader, rows, seed, out):
    """In a process of its own: read rows in an order of its own; how many were read."""
    order = np.random.default_rng(seed).permutation(len(rows))
    out.put(sum(shards.digest(reader.read(rows[i])) == rows[i]["packed_digest"] for i in order))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_share_a_cache_that_holds_one_chunk(source, tmp_path, start):
    reader = source(max_cache_gb=1.1 * CHUNK / 1e9)
    rows = list(reader.rows())
    reader.read(rows[0])  # connects before the fork
    context = multiprocessing.get_context(start)
    out = context.Queue()
    readers = [context.Process(target=look, args=(reader, rows, seed, out)) for seed in range(2)]
    for process in readers:
        process.start()
    assert [out.get(timeout=60) for _ in readers] == [30, 30]
    for process in readers:
        process.join()
    out.close()
    assert cached(tmp_path / "cache") <= 1.1 * CHUNK


def test_a_chunk_that_was_evicted_is_fetched_again(source, tmp_path):
    reader = source()
    rows = list(reader.rows())
    last = max(row["chunk"] for row in rows)
    for chunk in [*range(last + 1), 0]:
        row = next(row for row in rows if row["chunk"] == chunk)
        assert shards.digest(reader.read(row)) == row["packed_digest"]
    kept = {path.name for path in (tmp_path / "cache").rglob("chunk-*")}
    assert "chunk-0-0.bin" in kept
    assert "chunk-0-1.bin" not in kept


def test_the_chunk_not_asked_for_longest_goes_first(source, tmp_path):
    reader = source()
    first = {row["chunk"]: row for row in reversed(list(reader.rows()))}
    for chunk in (0, 1, 0, 2):
        reader.read(first[chunk])
    found = {path.name for path in (tmp_path / "cache").rglob("chunk-*")}
    assert found == {"chunk-0-0.bin", "chunk-0-2.bin"}


def test_a_chunk_is_fetched_once_while_it_is_kept(source, monkeypatch):
    fetched = []
    fetch = remote.Bucket.fetch
    monkeypatch.setattr(
        remote.Bucket, "fetch", lambda self, name, file: (fetched.append(name), fetch(self, name, file))
    )
    reader = pickle.loads(pickle.dumps(source(max_cache_gb=1)))
    rows = list(reader.rows())
    for row in rows + rows[::-1]:
        reader.read(row)
    assert sorted(fetched) == sorted({HEAD, ROWS} | {f"chunk-0-{row['chunk']}.bin" for row in rows})


def test_what_a_killed_process_was_fetching_does_not_fill_the_cache(source, tmp_path):
    reader = source(max_cache_gb=1.1 * CHUNK / 1e9)
    rows = list(reader.rows())
    reader.read(rows[0])
    (folder,) = (tmp_path / "cache").iterdir()
    for number in (0, 1, 2):
        (folder / f".chunk-0-{number}.bin.{CHUNK}.part").write_bytes(b"half")
    reader.read(rows[-1])
    reader.read(rows[0])
    assert not list(folder.glob(".*.part"))


def test_a_spoilt_cache_is_fetched_again_and_spoilt_storage_is_said(source, bucket, tmp_path):
    reader = source()
    row = next(iter(reader.rows()))
    picture = reader.read(row)
    (chunk,) = (tmp_path / "cache").rglob(f"chunk-0-{row['chunk']}.bin")
    data = bytearray(chunk.read_bytes())
    data[row["chunk_offset"]] ^= 1
    chunk.write_bytes(data)
    np.testing.assert_array_equal(reader.read(row), picture)
    chunk.unlink()
    key = f"us/v1/{chunk.name}"
    bucket.put_object(Bucket="corpora", Key=key, Body=bytes(data))
    with pytest.raises(ValueError, match=rf"s3://corpora/{key}: damaged at the picture {row['path']}; upload"):
        reader.read(row)
    bucket.put_object(Bucket="corpora", Key=key, Body=bytes(data[:-1]))
    with pytest.raises(ValueError, match=rf"has {len(data) - 1} bytes, not {len(data)}: upload it again"):
        reader.read(row)
    bucket.delete_object(Bucket="corpora", Key=key)
    with pytest.raises(ValueError, match=r"not there"):
        reader.read(row)


class Failing(http.server.BaseHTTPRequestHandler):
    """Hands the files of a folder out, but answers the first requests of each kind with an error."""

    folder, failures, seen = None, 0, {}

    def _answer(self, body):
        count = self.seen[self.command] = self.seen.get(self.command, 0) + 1
        if count <= self.failures:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (self.folder / self.path.partition("?")[0].rsplit("/", 1)[-1]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.write(data if body else b"")

    def do_GET(self):
        self._answer(True)

    def do_HEAD(self):
        self._answer(False)

    def log_message(self, *_):
        pass


@pytest.fixture
def failing(stream):
    """failing(n): the address of storage that fails n times first."""
    servers = []

    def failing(failures):
        handler = type("Handler", (Failing,), {"folder": stream, "failures": failures, "seen": {}})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield failing
    for server in servers:
        server.shutdown()
        server.server_close()


def test_storage_that_fails_once_is_asked_again(failing, tmp_path):
    reader = Stream(path="s3://corpora/us/v1", endpoint=failing(1), cache=tmp_path)
    row = next(iter(reader.rows()))
    assert shards.digest(reader.read(row)) == row["packed_digest"]


def test_storage_that_stays_away_is_said_in_a_line(failing, tmp_path, write, capsys):
    words = ["fit", "--recipe", str(write("recipe.yaml", RECIPE)), "--plugin", str(write("streamed.py", PLUGIN))]
    for address in (failing(9), "http://127.0.0.1:9"):
        more = ["--data", "s3://corpora/us/v1", "--source.endpoint", address, "--out", str(tmp_path / "run")]
        assert main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert "s3://corpora/us/v1/" in error
        assert "cannot be fetched" in error
        assert error.count("error:") == 1
        assert "Traceback" not in error


def test_who_may_not_read_is_told_what_to_set(bucket, server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"AWS_ACCESS_KEY_ID"):
        list(Stream(path="s3://corpora/us/v1", endpoint=server, cache=tmp_path).rows())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "no one's")  # not to be sent
    for name in (HEAD, ROWS):
        bucket.put_object_acl(Bucket="corpora", Key=f"us/v1/{name}", ACL="public-read")
    assert len(list(Stream(path="s3://corpora/us/v1", endpoint=server, cache=tmp_path, anonymous=True).rows())) == 30


def test_tables_that_do_not_belong_together_are_refused(bucket, source):
    bucket.put_object(Bucket="corpora", Key=f"us/v1/{ROWS}", Body=b"another")
    with pytest.raises(ValueError, match=r"not the table that stream\.json tells of"):
        list(source().rows())
    bucket.put_object(Bucket="corpora", Key=f"us/v1/{HEAD}", Body=b"<html>")
    with pytest.raises(ValueError, match=r"stream\.json: damaged"):
        list(source().rows())
    with pytest.raises(ValueError, match=r"not there; write the address"):
        list(source(path="s3://corpora/us/v2").rows())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"path": "https://example.org/us"}, "https:// is not read"),
        ({"path": "s3://"}, "names no bucket"),
        ({"path": "s3://b/p", "endpoint": "localhost:9000"}, "write an address such as"),
        ({"path": "s3://b/p", "endpoint": "https://key:word@example.org"}, "leave key and secret out"),
        ({"path": "s3://b/p", "max_cache_gb": 0.0}, "above 0"),
        ({"path": "gs://b/p", "region": "eu"}, "region: without effect"),
        ({"path": "folder", "anonymous": True}, "anonymous: without effect"),
        ({"path": "folder", "max_cache_gb": 5.0}, "max_cache_gb: without effect"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Stream(**options)


def test_a_cache_smaller_than_a_chunk_is_refused_before_training(source):
    with pytest.raises(ValueError, match=r"max_cache_gb 1e-06 is less than a chunk; write 1\.\de-05 or more"):
        source(max_cache_gb=1e-6).rows()


def test_a_folder_that_is_no_stream_and_rows_of_others_are_refused(tmp_path, stream):
    with pytest.raises(ValueError, match=r"not a stream: .*: no such file"):
        Stream(path=tmp_path).rows()
    with pytest.raises(ValueError, match=r"no data: write --data"):
        Stream().rows()
    with pytest.raises(ValueError, match=r"a\.png: not a row of a stream, for want of chunk"):
        Stream(path=stream).read({"path": "a.png"})


def test_an_address_is_not_made_a_path(monkeypatch, write):
    files, host = [write("recipe.yaml", RECIPE)], Host([write("streamed.py", PLUGIN)])
    assert recipe.load(files, [], host, data="s3://bucket/a").resolved["source"]["path"] == "s3://bucket/a"
    monkeypatch.setenv("USSL_DATA", "s3://bucket/b")
    assert recipe.load(files, [], host).resolved["source"]["path"] == "s3://bucket/b"
    assert remote.address("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert remote.address("s3:/bucket/a") == "s3://bucket/a"  # as a path object leaves it
    assert remote.address("/data/s3") is None


def test_the_pictures_are_those_of_the_files(corpus, stream):
    reader = Stream(path=stream)
    whole = [row for row in reader.rows() if row["packed_scale"] == 1]
    assert whole
    for row in whole:
        np.testing.assert_array_equal(reader.read(row), decoded(str(corpus.parent / row["path"])))
