"""A check of a store: what those of all kinds have in common."""

from __future__ import annotations

from collections import defaultdict

from castore.check.config import config_anew, config_fault
from castore.check.findings import Findings
from castore.check.packs import PackReading
from castore.check.scan import PackScan
from castore.check.source import Source
from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig, decode_config
from castore.stream.reports import CheckReport


class StoreCheck:
    """One look at a store. `findings` has what is wrong, `scan` what the packs hold, `used` those
    that names lead to."""

    def __init__(self, source: Source, config: StoreConfig) -> None:
        self.config = config
        self.scan = PackScan(source, config)
        self.findings = Findings(self.scan.readings)
        self.used: set[bytes] = set()
        self._unread: defaultdict[bytes, list[str]] = defaultdict(list)  # names, by pack
        self._names = source.names
        self._report = CheckReport()

    @property
    def readings(self) -> dict[bytes, PackReading]:
        return self.scan.readings

    def check_config(self, raw: bytes, what: str) -> None:
        """`raw` is castore.json as it is there, by now."""
        try:
            said = decode_config(raw)
        except (FormatError, UnsupportedFormat) as error:
            self.findings.add("config", "corrupt", str(error))
            return
        fault = "says other things" if said != self.config else config_fault(raw, self.config)
        if said == self.config and config_anew(raw, self.config) is not None:
            told = f"{what} {fault}, though it says the same: a repair writes it anew"
            self.findings.add("config", "warning", told)
        elif fault:
            self.findings.add("config", "corrupt", f"{what} {fault}")

    def check_names(self) -> None:
        for name, faults, packs, unread in self._names(self.scan):
            self._report.names += 1
            self.used.update(packs)
            for pack_id in unread:
                self._unread[pack_id].append(name)
            for faulty in faults:
                self.findings.add_object(name, faulty)

    def report(self) -> CheckReport:
        """What was found, when all is looked at."""
        report = self._report
        report.problems = list(self.findings.problems())
        report.packs = len(self.readings)
        report.frames = sum(len(reading.frames) for reading in self.readings.values())
        report.read_frames, report.read_bytes = self.scan.read_frames, self.scan.read_bytes
        return report
