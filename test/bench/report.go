package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// figure is one line of the table: what was measured, in turns with its limit, or a plain value with its bound.
type figure struct {
	name    string
	clients int
	rates   []float64 // a second, one for each round
	limits  []float64
	target  float64 // of the ratio, at least; 0: none is set

	note         string // beside the rate; may be empty
	value, bound string // instead of rates
	met          bool
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// ratios are those of each round.
func (f *figure) ratios() []float64 {
	all := make([]float64, len(f.rates))
	for i := range all {
		all[i] = f.rates[i] / f.limits[i]
	}
	return all
}

func (f *figure) cells() []string {
	clients := ""
	if f.clients > 0 {
		clients = strconv.Itoa(f.clients)
	}
	if f.value != "" {
		met := ""
		if f.bound != "" {
			met = verdict(f.met)
		}
		return []string{f.name, clients, f.value, "", "", f.bound, met}
	}
	r := f.ratios()
	target, met := "", ""
	if f.target > 0 {
		target, met = fmt.Sprintf("≥ %.2f", f.target), verdict(median(r) >= f.target)
	}
	rate := count(median(f.rates)) + "/s"
	if f.note != "" {
		rate += " (" + f.note + ")"
	}
	return []string{
		f.name, clients, rate, count(median(f.limits)) + "/s",
		fmt.Sprintf("%.2f (%.2f to %.2f)", median(r), slices.Min(r), slices.Max(r)), target, met,
	}
}

func verdict(met bool) string {
	if met {
		return "yes"
	}
	return "**no**"
}

func (f *figure) String() string {
	c := f.cells()
	return strings.TrimSpace(fmt.Sprintf("%-44s %4s  %-12s %-12s %-22s %s", c[0], c[1], c[2], c[3], c[4], c[5]))
}

// count writes a rate with as many digits as mean anything.
func count(v float64) string {
	if v < 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	s := strconv.FormatFloat(v/10, 'f', 0, 64) + "0"
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// table is what was measured, in Markdown.
func (b *bench) table() string {
	var t strings.Builder
	fmt.Fprintf(&t, "Measured on %s in %.0f minutes, on %s.\n\n", b.began.UTC().Format("2 January 2006"), time.Since(b.began).Minutes(), machine())
	t.WriteString("| what | clients | lessor | limit | ratio (lowest to highest) | target | met |\n")
	t.WriteString("| --- | ---: | ---: | ---: | ---: | ---: | --- |\n")
	for _, f := range b.figures {
		t.WriteString("| " + strings.Join(f.cells(), " | ") + " |\n")
	}
	return t.String()
}

// machine says what this is measured on, without names.
func machine() string {
	field := func(file, key string) string {
		f, err := os.Open(file)
		if err != nil {
			return ""
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == key {
				return strings.TrimSpace(value)
			}
		}
		return ""
	}
	model := field("/proc/cpuinfo", "model name")
	if model == "" {
		model = "unknown processor"
	}
	kb, _ := strconv.ParseFloat(strings.TrimSuffix(field("/proc/meminfo", "MemTotal"), " kB"), 64)
	return fmt.Sprintf("%d cores (%s), %.0f GB of memory, %s, %s", runtime.NumCPU(), model, kb/1e6, runtime.GOOS, runtime.Version())
}

// write puts a table between the markers that bear a name in a file.
func (b *bench) write(path, name, table string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+name+":begin -->", "<!-- "+name+":end -->"
	from, to := bytes.Index(text, []byte(begin)), bytes.Index(text, []byte(end))
	if from < 0 || to < from {
		return fmt.Errorf("%s has no markers %s and %s", path, begin, end)
	}
	text = slices.Concat(text[:from], []byte(begin+"\n"+table), text[to:])
	return os.WriteFile(path, text, 0o644)
}
