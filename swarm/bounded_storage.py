"""BoundedStorage: hivemind's DHT storage with a cap on peers per key and two faults mended."""

from typing import Any

from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue

PEERS_CAP = 1500  # under one key: 1,500 records of 2 KiB stay below hivemind's 4 MiB answers


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """Keeps one record for each peer and key, the one that expires last.

    hivemind lets an older record cut a newer one short (its heap forgets the later expiration), and
    a search merges what others answer into the stored dictionary itself; here neither happens.
    """

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """Keep a record unless a later one of its peer is there or the key is full."""
        item = super().get(key)
        if item is not None and isinstance(item.value, DictionaryDHTValue):
            entries = item.value
            known = entries.get(subkey)
            if known is not None and known.expiration_time >= expiration_time:
                return False
            if known is None and len(entries) >= PEERS_CAP:
                return False
            if expiration_time > entries.latest_expiration_time:
                super().store(key, entries, expiration_time)
            return bool(entries.store(subkey, value, expiration_time))
        entries = DictionaryDHTValue()
        entries.store(subkey, value, expiration_time)
        return bool(super().store(key, entries, expiration_time))

    def get(self, key: Any) -> Any:
        """A copy of what is stored, for searches to merge into."""
        item = super().get(key)
        if item is None or not isinstance(item.value, DictionaryDHTValue):
            return item
        copy = DictionaryDHTValue()
        for subkey, (value, expiration) in item.value.items():
            copy.store(subkey, value, expiration)
        return type(item)(copy, item.expiration_time)

    @classmethod
    def adopt(cls, storage: DHTLocalStorage) -> "BoundedStorage":
        """A bounded storage with the records that a fresh node took in while it started."""
        bounded = cls(None if storage.maxsize == float("inf") else storage.maxsize)
        for key, item in storage.items():
            if isinstance(item.value, DictionaryDHTValue):
                for subkey, (value, expiration) in item.value.items():
                    bounded.store_subkey(key, subkey, value, expiration)
        return bounded
