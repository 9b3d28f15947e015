"""Eviction from the compilation cache."""

import os

from bilstm_attn.runtime.compile_cache import evict_least_recently_used


def test_least_recently_used_files_are_evicted_beyond_the_limit(tmp_path):
    (tmp_path / "folder").mkdir()
    for seconds, name in enumerate(["oldest", "old", "new", "newest"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (seconds, seconds))
    evict_least_recently_used(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 5
    evict_least_recently_used(tmp_path, 29)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "new", "newest"}
