"""What --junitxml has beside pytest's own words: clause, scenario, verdict, cause and spec, as properties of a test."""

from __future__ import annotations

import json
from xml.etree.ElementTree import Element, SubElement

import pytest
from _pytest.junitxml import bin_xml_escape, xml_key

from harness.reports.junit import case_properties
from harness.session import report
from harness.session.state import STATE
from harness.verdict import AMBIGUOUS, FAIL, UNEXPECTED_PASS, Case


class JUnitProperties:
    """A pytest plugin for the process that writes the file. case_property: the property that holds a case as JSON.

    The spec is a property of its own where the case does not hold; that of another case is in `case_property`. A test
    that judges several clauses has the properties of each, one after the other.
    """

    def __init__(self, case_property: str):
        self._case_property = case_property

    # Before pytest writes the file, and after the last case has its verdict: a cause joins many cases.
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        xml = session.config.stash.get(xml_key, None)
        if xml is None:
            return
        causes = causes_of(session.config.stash[STATE].cases)
        for test in (reporter.to_xml() for reporter in xml.node_reporters_ordered):
            properties = test.find("properties")
            for element in [] if properties is None else list(properties):
                if element.get("name") == self._case_property:
                    _add(properties, Case(**json.loads(element.get("value", ""))), causes)


def _add(properties: Element, case: Case, causes: dict[tuple[str, str], str]) -> None:
    is_bad = case.verdict in (FAIL, UNEXPECTED_PASS, AMBIGUOUS)
    spec = case.specs[0] if is_bad and case.specs else None
    cause = causes.get((case.clause, case.scenario), "")
    for name, value in case_properties(case.clause, case.scenario, case.verdict, cause, spec).items():
        SubElement(properties, "property", {"name": name, "value": bin_xml_escape(value)})


def causes_of(cases: list[Case]) -> dict[tuple[str, str], str]:
    """Return (clause, scenario) -> the sentence of the cause for which the case fails."""
    causes = report.to_json(cases, {}).get("causes", [])
    return {
        (member["clause"], member["scenario"]): cause["sentence"] for cause in causes for member in cause["members"]
    }
