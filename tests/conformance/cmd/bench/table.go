package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// percentile is the smallest sample that this part of all are not above.
func percentile(samples []time.Duration, part float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Clone(samples)
	slices.Sort(sorted)
	at := int(math.Ceil(part*float64(len(sorted)))) - 1
	return float64(sorted[max(at, 0)]) / float64(time.Millisecond)
}

func millis(ms float64) string {
	if ms < 10 {
		return fmt.Sprintf("%.2f", ms)
	}
	return fmt.Sprintf("%.1f", ms)
}

// ratio is how the first compares with the other: below 1 it is better.
func ratio(first, other float64) string {
	if other == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", first/other)
}

// table prints times of all runtimes, and the processor time of each of so many rounds; ratios are
// those of the first to the last.
func table(w io.Writer, targets []*target, whats []string, rounds int) {
	first, last := targets[0], targets[len(targets)-1]
	head := []string{"milliseconds", "n"}
	for _, t := range targets {
		head = append(head, t.name+" p50", "p90")
	}
	rows := [][]string{append(head, "ratio p50", "p90")}
	for _, what := range whats {
		n := len(first.samples[what])
		if n == 0 {
			continue
		}
		row := []string{what, fmt.Sprint(n)}
		for _, t := range targets {
			row = append(row, millis(percentile(t.samples[what], 0.5)), millis(percentile(t.samples[what], 0.9)))
		}
		for _, part := range []float64{0.5, 0.9} {
			row = append(row, ratio(percentile(first.samples[what], part), percentile(last.samples[what], part)))
		}
		rows = append(rows, row)
	}
	// What a runtime used in its own processes and in those it started.
	row := []string{"processor time, for each round", fmt.Sprint(rounds)}
	each := func(t *target) float64 { return float64(t.cpu) / float64(time.Millisecond) / float64(max(rounds, 1)) }
	for _, t := range targets {
		row = append(row, millis(each(t)), "")
	}
	rows = append(rows, append(row, ratio(each(first), each(last))))
	align(w, rows)
}

// show prints times and memory of all runtimes.
func show(w io.Writer, o options, targets, besides []*target) {
	first := targets[0]
	table(w, targets, []string{
		runPod, startOne, create, start, fromZero, withMore, exec, stop, stopPod, removeOne, removePod, takeDown,
		listAll, listPods, podStatus, statusOne,
	}, o.rounds)

	all := append(append([]*target{}, targets...), besides...)
	head := []string{fmt.Sprintf("kB, with %d pods of one container", o.pods)}
	for _, t := range all {
		head = append(head, t.name)
	}
	for _, t := range all[1:] {
		head = append(head, "to "+t.name)
	}
	rows := [][]string{head}
	// What somebody does not have, he has nothing of.
	add := func(what string, value func(*memory) int, parts int) {
		row, ratios := []string{what}, []string{}
		for _, t := range all {
			kb := "-"
			if value(&t.memory) > 0 {
				kb = fmt.Sprintf("%.0f", float64(value(&t.memory))/float64(max(parts, 1)))
			}
			row = append(row, kb)
		}
		for _, t := range all[1:] {
			ratios = append(ratios, ratio(float64(value(&first.memory)), float64(value(&t.memory))))
		}
		rows = append(rows, append(row, ratios...))
	}
	add("daemon, before them: RSS", func(m *memory) int { return m.idle.rss }, 1)
	add("daemon, before them: PSS", func(m *memory) int { return m.idle.pss }, 1)
	add("daemon: RSS", func(m *memory) int { return m.busy.rss }, 1)
	add("daemon: PSS", func(m *memory) int { return m.busy.pss }, 1)
	add("monitor or shim, each: RSS", func(m *memory) int { return m.helpers.rss }, o.pods)
	add("monitor or shim, each: PSS", func(m *memory) int { return m.helpers.pss }, o.pods)
	add("monitor or shim, each: private", func(m *memory) int { return m.helpers.private }, o.pods)
	add("pause process, each: PSS", func(m *memory) int { return m.pauses.pss }, o.pods)
	add("all of these: PSS", func(m *memory) int {
		if m.busy.pss == 0 {
			return 0
		}
		return m.busy.pss + m.helpers.pss + m.pauses.pss
	}, 1)
	fmt.Fprintln(w)
	align(w, rows)
}

// align prints columns: the first to the left, the others to the right.
func align(w io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for n, cell := range row {
			if n == len(widths) {
				widths = append(widths, 0)
			}
			widths[n] = max(widths[n], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for n, cell := range row {
			if n == 0 {
				fmt.Fprintf(&line, "%-*s", widths[n], cell)
			} else {
				fmt.Fprintf(&line, "  %*s", widths[n], cell)
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
