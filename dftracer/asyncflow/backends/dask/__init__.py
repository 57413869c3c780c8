"""Tasks on a Dask cluster. Workers import from here, so that this imports nothing."""
