"""What a run measured, a line of JSON for each time, so that a resumed run's log is an uninterrupted one's."""

import json
from pathlib import Path


LOG_FILE = "training_log.jsonl"


class TrainingLog:
    """Records in a file, and the same in memory.

    Args:
        path: File of one JSON object a line.
        num_records: Records of an earlier part of the run to keep; what came after its checkpoint is dropped.
        writes: Whether this process writes the file.
    """

    def __init__(self, path: Path, num_records: int = 0, writes: bool = True):
        self.path, self.writes = path, writes
        lines = path.read_text().splitlines()[:num_records] if path.exists() else []
        self.records = [json.loads(line) for line in lines]
        if writes:
            path.write_text("".join(f"{line}\n" for line in lines))

    def add(self, record: dict) -> None:
        """Write a record at once."""
        self.records.append(record)
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def with_key(self, key: str) -> list[dict]:
        """Records that have `key`."""
        return [record for record in self.records if key in record]
