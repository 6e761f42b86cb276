"""The graph that the benchmark times is that of the default run, so many times over."""

import dag


def test_the_graph_holds_the_default_studies_as_often_as_asked():
    one, two = dag.measure(1), dag.measure(2)
    assert one["jobs"] > 100
    # Sources, figures and the target are there once.
    assert 1.7 * one["jobs"] < two["jobs"] < 2 * one["jobs"]
    assert two["seconds"] > 0


def test_the_page_names_jobs_and_seconds():
    assert "3,122 jobs" in dag.lines({"jobs": 3122, "seconds": 12.66})[0]
    assert "12.7 s" in dag.lines({"jobs": 3122, "seconds": 12.66})[0]
