"""Whole journeys over the rooms below: the quickstart, recipes, the list of systems, the doctor.

In: a folder and a time budget, or a recipe. Out: a chain of artifacts and one report. One of the
88 systems is begun here: ML pipeline automation (see docs/systems.md).
"""
