"""A synthetic driving world: scenes of triangles, ray-cast sensors, writers of public layouts."""
