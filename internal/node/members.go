package node

import (
	"context"
	"encoding/json"
	"time"

	"github.com/lessor-dev/lessor/internal/claim"
	"github.com/lessor-dev/lessor/internal/store"
	"github.com/lessor-dev/lessor/internal/system"
)

// said is what a node announces of itself to the others on its store. What one of another version adds is passed over.
type said struct {
	Name    string `json:"name"`
	Address string `json:"address"`           // URL for clients
	Cluster string `json:"cluster,omitempty"` // cluster_addr, for Vault's sake
	Version string `json:"version"`
	Claims  string `json:"reported"`          // version of Vault that it claims to be
	State   string `json:"state"`             // active, sealed or draining
	Failing int    `json:"failing,omitempty"` // targets that it works at and only probes
}

// about is how the node is by now.
func (n *Node) about(s *state) said {
	about := said{
		Name: n.config.NodeName, Address: n.reachable(), Cluster: n.config.ClusterAddr, Version: n.o.Version, Claims: n.config.ReportedVersion, State: "active",
	}
	switch {
	case n.draining.Load():
		about.State = "draining"
	case s.life == nil:
		about.State = "sealed"
	}
	if s.life != nil {
		about.Failing = len(s.life.core.Failing())
	}
	return about
}

// announce tells the others how the node is by now.
func (n *Node) announce() {
	n.announcing.Lock()
	defer n.announcing.Unlock()
	s := n.state.Load()
	n.announced = n.about(s)
	text, err := json.Marshal(n.announced)
	if err == nil && len(text) <= store.PeerBytes {
		s.db.Announce(text)
	}
}

// news reports whether the node is by now otherwise than it announced last.
func (n *Node) news() bool {
	n.announcing.Lock()
	defer n.announcing.Unlock()
	return n.about(n.state.Load()) != n.announced
}

// members are the nodes on the store, as it tells.
func (l *life) members(ctx context.Context) ([]system.Member, error) {
	peers, err := l.db.Peers(ctx)
	if err != nil {
		return nil, err
	}
	held, err := l.held()
	if err != nil {
		return nil, err
	}
	self := l.db.Self()
	all := make([]system.Member, len(peers))
	for i, p := range peers {
		m := system.Member{ID: p.ID, State: "starting", Started: p.Started, Seen: p.Seen, Alive: p.Alive, Self: p.ID == self, Claims: held[p.ID]}
		var about said
		if json.Unmarshal(p.About, &about) == nil {
			m.Name, m.Address, m.ClusterAddress, m.Version, m.Reported, m.State = about.Name, about.Address, about.Cluster, about.Version, about.Claims, about.State
			m.Failing = about.Failing
		}
		all[i] = m
	}
	return all, nil
}

// held is how much of the work that nodes share each of them does.
func (l *life) held() (map[string]int, error) {
	if l.claims == nil {
		return map[string]int{l.db.Self(): claim.Shards}, nil
	}
	v, err := l.db.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return claim.Holders(v)
}

// noteEvery is how often a node looks whether it has something new to say about itself.
const noteEvery = time.Second

// note announces when targets begin to fail at this node, or are back, until ctx ends.
func (l *life) note(ctx context.Context) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if l.n.news() {
			l.n.announce()
		}
	}
}
