"""The packages of a wheel: the floors, and the studies that lie beside them."""

from setuptools import find_packages, setup

FLOORS = ("attacker", "clients", "fl_sim", "results", "server")

setup(
    packages=[
        *find_packages(include=[pattern for floor in FLOORS for pattern in (floor, f"{floor}.*")]),
        "fl_sim.studies",
        "results.page.templates",
    ]
)
