"""Whole journeys over the rooms below: the quickstart, recipes, the list of systems, the doctor.

In: a folder and a time budget, or a recipe. Out: a chain of artifacts and one report. Systems that
live here: ML pipeline automation, Training efficiency optimizer (both partly; see docs/systems.md).
"""
