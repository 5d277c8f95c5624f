package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// A plot is an SVG of four panels, one above the other, which share an axis: how many there are, by powers of ten.
const (
	plotWidth, panelHeight       = 640.0, 130.0
	marginLeft, marginRight      = 70.0, 20.0
	marginTop, marginBottom, gap = 40.0, 45.0, 28.0
)

// panel is one quantity, from nought up.
type panel struct {
	title string
	lines []line
}

type line struct {
	name, colour string
	of           func(c cost) float64
}

var panels = []panel{
	{"read at 1,000/s, ms", []line{
		{"p99", "#c0392b", func(c cost) float64 { return ms(c.p99) }},
		{"p50", "#2c6fbb", func(c cost) float64 { return ms(c.p50) }},
	}},
	{"resident memory, MB", []line{{"", "#2c6fbb", func(c cost) float64 { return float64(c.resident) / 1e6 }}}},
	{"disk, GB", []line{{"", "#2c6fbb", func(c cost) float64 { return float64(c.disk) / 1e9 }}}},
	{"start to first audited answer, s", []line{{"", "#2c6fbb", func(c cost) float64 { return c.start.Seconds() }}}},
}

// plot writes how cost grows as an SVG.
func (b *bench) plot(file, what, axis string, costs []cost) error {
	if err := os.MkdirAll(b.plots, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.plots, file+".svg"), []byte(draw("What "+what+" cost", axis, costs)), 0o644)
}

func draw(title, axis string, costs []cost) string {
	var s strings.Builder
	height := marginTop + float64(len(panels))*(panelHeight+gap) + marginBottom - gap
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="white"/>`+"\n"+`<text x="%.0f" y="18" font-size="15">%s</text>`+"\n", marginLeft, title)
	low, high := math.Log10(float64(costs[0].n)), math.Log10(float64(costs[len(costs)-1].n))
	x := func(n int) float64 {
		return marginLeft + (math.Log10(float64(n))-low)/max(high-low, 1e-9)*(plotWidth-marginLeft-marginRight)
	}
	for i, p := range panels {
		p.draw(&s, marginTop+float64(i)*(panelHeight+gap), x, costs)
	}
	for _, c := range costs {
		fmt.Fprintf(&s, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", min(max(x(c.n), marginLeft+10), plotWidth-marginRight-22), height-marginBottom+18, thousands(c.n))
	}
	fmt.Fprintf(&s, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n</svg>\n", (plotWidth+marginLeft)/2, height-marginBottom+36, axis)
	return s.String()
}

// draw draws the panel with its upper edge at top.
func (p panel) draw(s *strings.Builder, top float64, x func(int) float64, costs []cost) {
	most := 0.0
	for _, l := range p.lines {
		for _, c := range costs {
			most = max(most, l.of(c))
		}
	}
	step := tick(most)
	most = max(step, math.Ceil(most/step)*step)
	y := func(v float64) float64 { return top + panelHeight*(1-v/most) }
	fmt.Fprintf(s, `<text x="%.0f" y="%.1f" font-weight="bold">%s</text>`+"\n", marginLeft, top-5, p.title)
	for v := 0.0; v <= most*1.001; v += step {
		fmt.Fprintf(s, `<line x1="%.0f" x2="%.0f" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%.0f" y="%.1f" text-anchor="end">%g</text>`+"\n",
			marginLeft, plotWidth-marginRight, y(v), y(v), marginLeft-6, y(v)+4, math.Round(v*1e6)/1e6)
	}
	for _, l := range p.lines {
		var points []string
		for _, c := range costs {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(c.n), y(l.of(c))))
			fmt.Fprintf(s, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(c.n), y(l.of(c)), l.colour)
		}
		fmt.Fprintf(s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), l.colour)
		if l.name != "" {
			last := costs[len(costs)-1]
			fmt.Fprintf(s, `<text x="%.1f" y="%.1f" text-anchor="end" fill="%s">%s</text>`+"\n", x(last.n)-6, y(l.of(last))-6, l.colour, l.name)
		}
	}
}

// tick is a round step that makes three to seven of most.
func tick(most float64) float64 {
	if most <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{0.2, 0.5, 1, 2} {
		if most/(unit*f) <= 7 {
			return unit * f
		}
	}
	return unit * 2
}
