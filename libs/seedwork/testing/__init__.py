"""What tests share: fakes, clocks, contract suites."""
