"""The table of gpu_attention.py, made of reports that no GPU has to measure."""

import unittest

import gpu_attention


def row(profile, microseconds, batch=32, **more):
    return {
        "case": f"{batch}x32k:{profile}",
        "batch": batch,
        "tokens": 32768,
        "profile": profile,
        "microseconds": microseconds,
        "stream_microseconds": microseconds,
        "bytes": 10**8,
        "dense_bytes": 10**9,
        "bytes_per_second": 10**8 / microseconds * 1e6,
        "fraction_of_copy": 0.5,
        **more,
    }


def compact(*rows):
    return {
        "device": "a GPU",
        "copy_bytes_per_second": 4e12,
        "read_bytes_per_second": 4.4e12,
        "rows": list(rows),
        "skipped": {"128x128k:bf16": "allocating 9 bytes of device memory: out of memory"},
    }


def dense(*rows):
    return {"torch": "2.11", "skipped": {}, "rows": list(rows)}


def speed_ups(report):
    return {(r["batch"], r["profile"]): round(r["speed_up"], 3) for r in report["rows"]
            if "speed_up" in r}


class Combine(unittest.TestCase):
    def test_divides_by_the_fastest_dense_attention_of_the_same_size(self):
        ours = compact(row("plain-dense", 1000), row("int8", 100), row("int8", 50, batch=8))
        report = gpu_attention.combine(ours, dense(row("flash", 900), row("cudnn", 300, batch=8)))
        self.assertEqual(
            speed_ups(report),
            {(32, "flash"): 1, (32, "plain-dense"): 0.9, (32, "int8"): 9, (8, "cudnn"): 1,
             (8, "int8"): 6},
        )
        self.assertEqual(report["rows"][-1]["fastest_dense"], "flash")
        slow = gpu_attention.combine(ours, dense(row("flash", 2000)))
        self.assertEqual(speed_ups(slow)[32, "int8"], 10)

    def test_takes_its_own_dense_kernel_without_pytorch(self):
        report = gpu_attention.combine(compact(row("plain-dense", 1000), row("int8", 100)), None)
        self.assertEqual(speed_ups(report)[32, "int8"], 10)
        self.assertIn("own kernel only", gpu_attention.table(report))


class SequenceRows(unittest.TestCase):
    LINE = {"batch": 8, "context": 32768, "us": 100.0, "us_stream": 101.0, "bytes": 3e8,
            "bytes_of_dense": 0.3, "relative_error": 1e-3}

    def test_are_like_the_others(self):
        ours = compact(row("plain-dense", 400, batch=8), *gpu_attention.sequence_rows(self.LINE))
        report = gpu_attention.combine(ours, None)
        self.assertEqual(speed_ups(report)[8, "faithful"], 4)
        self.assertRegex(gpu_attention.table(report), r"faithful +100\.0 +300\.0 +30\.0% +3\.00 +75%")

    def test_have_the_published_method_where_it_was_timed(self):
        line = dict(self.LINE, rebuild_us=5e4, rebuild_relative_error=2e-3)
        profiles = [r["profile"] for r in gpu_attention.sequence_rows(line)]
        self.assertEqual(profiles, ["faithful", "rebuild"])


class Table(unittest.TestCase):
    def test_marks_what_the_host_limits_and_says_what_was_skipped(self):
        ours = compact(row("plain-dense", 10), row("int8", 5, stream_microseconds=9, exact_regions=True))
        text = gpu_attention.table(gpu_attention.combine(ours, None))
        self.assertRegex(text, r"int8\+exact +5\.0\*")
        self.assertRegex(text, r"plain-dense +10\.0 ")
        self.assertIn("skipped 128x128k:bf16: allocating", text)
        self.assertIn("2.00x", text)

    def test_says_nothing_it_has_not_measured(self):
        text = gpu_attention.table(gpu_attention.combine(compact(row("int8", 5)), None))
        self.assertRegex(text, r"% +- +- +-")


if __name__ == "__main__":
    unittest.main()
