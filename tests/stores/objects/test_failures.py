"""What an object store does wrong: requests are tried again, and then there are typed errors."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from server import ChatData, serve
from server.stores.objects import ObjectStore, probing
from shared.errors import Forbidden, NotFound, StorageFull, StorageUnavailable, Superseded
from tests.stores.support import begin, digest_of, get, names_in
from tests.transfers.helpers import connected, content

from .faulty import Fault, FaultyService, faulty
from .service import BUCKET

PART = 8 * 1024 * 1024


@pytest.fixture
async def service(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultyService]:
    """A proxy, which isn't tried out: SeaweedFS takes seconds for requests at once for one object."""
    async with faulty(endpoint) as service:
        monkeypatch.setitem(probing._known, (service.endpoint, BUCKET), True)
        yield service


async def opened(service: FaultyService, prefix: str, deadline_seconds: float = 10) -> ObjectStore:
    store = ObjectStore(BUCKET, prefix, endpoint=service.endpoint, deadline_seconds=deadline_seconds)
    await store.start()
    return store


LONG = pytest.mark.objects_long


@pytest.mark.parametrize(
    "fault", [pytest.param((503, "SlowDown"), marks=LONG), pytest.param("cut", marks=LONG), "lost"]
)
async def test_every_request_fails_once(service: FaultyService, prefix: str, fault: Fault) -> None:
    """An answer that is lost isn't taken for another's: what the store has done itself is no conflict."""
    store = await opened(service, prefix)
    service.fault = lambda number, method, path: fault if number % 2 else None
    large, small = content(PART + 1_000_000), content(1000)
    try:
        for name, data in (("large", large), ("small", small)):
            upload = await begin(store, name, upload_id=name, overwrite=False)
            await upload.append([data])
            await upload.suspend()
            assert await store.uploaded(name, name) == len(data)
            upload = await begin(store, name, upload_id=name, overwrite=False)
            info = await upload.commit(digest_of(data))
            assert await store.stat(name) == info
            assert await store.published(name, name) == info
            assert await get(store, name) == data
            moved = await store.move(name, f"{name}-moved", overwrite=False)
            assert (moved.size, moved.digest) == (info.size, info.digest)
        assert await names_in(store) == {"large-moved", "small-moved"}
        assert (await store.delete("large-moved")).size == len(large)
        upload = await begin(store, "dropped")
        await upload.append([b"content"])
        await upload.abort()
        with pytest.raises(NotFound):
            await store.uploaded("u1", "dropped")
        assert await store.sweep(-1) == 0
    finally:
        service.fault = lambda *_: None
        await store.close()


async def test_a_service_that_is_down_and_comes_back(service: FaultyService, prefix: str) -> None:
    store = ObjectStore(BUCKET, prefix, endpoint=service.endpoint, deadline_seconds=30)
    data = content(PART + 1_000_000)
    async with serve(data=ChatData(store)) as server, connected(server.uri) as files:
        await files.upload("small", b"content")
        upload = await begin(store, "large", size=len(data))
        await upload.append([data[:PART]])
        assert await upload.flush() == PART
        service.fault = lambda *_: "cut"
        store._bucket._deadline_seconds = 0.3
        await upload.append([data[PART:]])
        calls = (files.download("small"), files.stat("small"), files.upload("other", b""), files.delete("small"))
        for call in (*calls, files.list_files()):
            with pytest.raises(StorageUnavailable):
                await call
        with pytest.raises(StorageUnavailable):
            await upload.commit(digest_of(data))
        service.fault = lambda *_: None
        store._bucket._deadline_seconds = 30
        assert await files.download("small") == b"content"
        upload = await begin(store, "large", size=len(data))
        assert upload.received >= PART
        await upload.append([data[upload.received :]])
        await upload.commit(digest_of(data))
        assert await files.download("large") == data


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "ExpiredToken", StorageUnavailable),
        (403, "AccessDenied", Forbidden),
        (507, "InsufficientStorage", StorageFull),
        pytest.param(403, "SignatureDoesNotMatch", StorageUnavailable, marks=LONG),
        pytest.param(404, "NoSuchBucket", StorageUnavailable, marks=LONG),
        pytest.param(503, "ServiceUnavailable", StorageUnavailable, marks=LONG),
        pytest.param(429, "TooManyRequests", StorageUnavailable, marks=LONG),
    ],
)
async def test_errors_of_the_service(
    service: FaultyService, prefix: str, status: int, code: str, error: type[Exception]
) -> None:
    store = await opened(service, prefix, deadline_seconds=0.3 if error is StorageUnavailable else 30)
    service.fault = lambda *_: (status, code)
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b"content"),
        lambda: store.open("a"),
        lambda: begin(store, "a"),
        store.list,
        lambda: store.sweep(60),
    ]
    for call in calls:
        with pytest.raises(error):
            await call()  # type: ignore[misc]
    await store.close()


@LONG
async def test_a_service_that_ignores_conditions_is_refused(service: FaultyService, prefix: str) -> None:
    probing._known.clear()
    service.fault = lambda *_: "unconditional"
    with pytest.raises(OSError, match="ignores the conditions"):
        await opened(service, prefix)


async def test_a_service_that_is_not_there_is_refused(prefix: str) -> None:
    store = ObjectStore(BUCKET, prefix, endpoint="http://127.0.0.1:9", deadline_seconds=0.3)
    with pytest.raises(OSError, match="can't be used"):
        await store.start()


async def test_a_download_survives_lost_connections_and_notices_another_file(
    service: FaultyService, store: ObjectStore, prefix: str
) -> None:
    data = content(3_000_000)
    await store.put("a", data)
    other = await opened(service, prefix)
    reader = await other.open("a")
    assert await reader.read(0, 1_000_000) == data[:1_000_000]
    reader.let_go()  # type: ignore[attr-defined]
    service.fault = lambda number, method, path: "cut" if number % 2 else None
    assert await reader.read(1_000_000, 3_000_000) == data[1_000_000:]
    await reader.close()
    await other.close()


@LONG
async def test_memory_is_bounded_for_any_number_of_uploads(store: ObjectStore, prefix: str, endpoint: str) -> None:
    """Where there are more than fit, those with the most in memory are written in smaller pieces."""
    small = ObjectStore(BUCKET, prefix, endpoint=endpoint, max_upload_bytes=128 * 1024 * 1024)
    await small.start()
    data = content(6_000_000)
    uploads = [await small.begin(f"u{n}", f"n{n}", size=None, algorithm="xxh3-128") for n in range(30)]
    room = small._room

    async def append(number: int) -> None:
        for start in range(0, len(data), 500_000):
            await uploads[number].append([data[start : start + 500_000]])
            assert room._used <= 128 * 1024 * 1024

    await asyncio.gather(*(append(number) for number in range(len(uploads))))
    for upload in uploads[2:]:
        await upload.abort()
    for number in range(2):
        await uploads[number].commit(digest_of(data))
        assert await get(store, f"n{number}") == data
    assert room._used == room.leaving == 0
    with pytest.raises((Superseded, RuntimeError)):
        await uploads[5].append([b"x"])
    await small.close()
