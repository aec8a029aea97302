"""The steps of a run. Each module's ``run(job)`` yields events; it neither prints nor stores."""
