"""Proximal policy optimisation of a policy against rewards."""
