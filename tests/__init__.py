"""The test suites: unit (pure), contract, control_plane (real API server), crash (kill -9), e2e (real machines)."""
