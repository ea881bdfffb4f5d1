"""What a rank tells its driver, in which order."""

from eagleray.training.telemetry import Buffer


def told(buffer):
    return [(record["kind"], record.get("step")) for record in buffer.drain()]


def test_of_the_steps_between_two_records_the_newest_is_told():
    buffer = Buffer()
    for step in range(1, 8):
        buffer.at(step)
        if step == 5:
            buffer.put("commit", step=5)
    assert told(buffer) == [("at", 5), ("commit", 5), ("at", 7)]
    assert told(buffer) == []


def test_records_are_in_the_order_of_their_times():
    buffer = Buffer()
    buffer.at(1)
    buffer.put("phase", step=1)
    buffer.at(2)
    times = [record["time"] for record in buffer.drain()]
    assert len(times) == 3
    assert times == sorted(times)


def test_what_nobody_drains_falls_off_the_far_end():
    buffer = Buffer(capacity=3)
    for number in range(5):
        buffer.put("note", step=number)
    assert told(buffer) == [("note", 2), ("note", 3), ("note", 4)]
