package server

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/lessor-dev/lessor/api"
)

// public is what is answered to anybody, unaudited, in Vault's shapes.
var public = map[string]func(*Handler, http.ResponseWriter, *http.Request){
	"sys/health": (*Handler).health, "sys/seal-status": (*Handler).sealStatus, "sys/seal-backend-status": (*Handler).sealBackends,
	"sys/leader": (*Handler).leader, "sys/init": (*Handler).initialized,
}

// Public are the paths that are answered without the Gate; sys/init, where it only asks.
func Public() []string { return slices.Sorted(maps.Keys(public)) }

// answerer is what answers a request for a public path; nil if the request goes through the Gate.
func answerer(r *http.Request, path string) func(*Handler, http.ResponseWriter, *http.Request) {
	answer := public[path]
	if answer == nil || path == "sys/init" && (r.Method == http.MethodPut || r.Method == http.MethodPost) || r.URL.Query().Has("help") {
		return nil
	}
	return answer
}

type healthAnswer struct {
	Initialized          bool   `json:"initialized"`
	Sealed               bool   `json:"sealed"`
	Standby              bool   `json:"standby"`
	PerformanceStandby   bool   `json:"performance_standby"`
	ReplicationMode      string `json:"replication_performance_mode"`
	ReplicationDRMode    string `json:"replication_dr_mode"`
	ServerTime           int64  `json:"server_time_utc"`
	Version              string `json:"version"`
	Enterprise           bool   `json:"enterprise"`
	ClusterName          string `json:"cluster_name,omitempty"`
	ClusterID            string `json:"cluster_id,omitempty"`
	EchoDuration         int64  `json:"echo_duration_ms"`
	ClockSkew            int64  `json:"clock_skew_ms"`
	ReplicationCanaryAge int64  `json:"replication_primary_canary_age_ms"`
	LessorVersion        string `json:"lessor_version"`
	Fenced               bool   `json:"fenced"`
	Draining             bool   `json:"draining"`
	Away                 bool   `json:"away"`
}

// health tells load balancers by its status whether to send requests here.
func (h *Handler) health(w http.ResponseWriter, r *http.Request) {
	if !asks(w, r) {
		return
	}
	query := r.URL.Query()
	bad := ""
	code := func(name string, otherwise int) int {
		text := query.Get(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 200 || n > 599 {
			bad = name
		}
		return n
	}
	active, sealed, uninitialized := code("activecode", http.StatusOK), code("sealedcode", http.StatusServiceUnavailable), code("uninitcode", http.StatusNotImplemented)
	for name, otherwise := range map[string]int{"standbycode": 429, "performancestandbycode": 473, "drsecondarycode": 472, "haunhealthycode": 474, "removedcode": 530} {
		code(name, otherwise) // there is no such node: each one that is unsealed is active; a code that is none is refused all the same
	}
	if bad != "" {
		h.refuse(w, &api.Error{Kind: api.Invalid, Text: "bad status code given for " + bad})
		return
	}

	s := h.gate.Status()
	draining := h.draining.Load()
	status := active
	switch {
	case !s.Initialized:
		status = uninitialized
	case s.Sealed:
		status = sealed
	case draining, s.Away:
		status = http.StatusServiceUnavailable
	}
	replication := "disabled"
	if s.Sealed || !s.Initialized {
		replication = "unknown"
	}
	sendJSON(w, status, healthAnswer{
		Initialized: s.Initialized, Sealed: s.Sealed, Standby: s.Sealed || !s.Initialized, ReplicationMode: replication, ReplicationDRMode: replication,
		ServerTime: h.clock.Now().Unix(), Version: s.Reported, ClusterName: s.ClusterName, ClusterID: s.ClusterID,
		LessorVersion: s.Version, Fenced: s.Fenced, Draining: draining, Away: s.Away,
	})
}

type sealAnswer struct {
	Type          string `json:"type"`
	Initialized   bool   `json:"initialized"`
	Sealed        bool   `json:"sealed"`
	Threshold     int    `json:"t"`
	Shares        int    `json:"n"`
	Progress      int    `json:"progress"`
	Nonce         string `json:"nonce"`
	Version       string `json:"version"`
	BuildDate     string `json:"build_date"`
	Migration     bool   `json:"migration"`
	ClusterName   string `json:"cluster_name,omitempty"`
	ClusterID     string `json:"cluster_id,omitempty"`
	RecoverySeal  bool   `json:"recovery_seal"`
	StorageType   string `json:"storage_type,omitempty"`
	LessorVersion string `json:"lessor_version"`
}

func (h *Handler) sealStatus(w http.ResponseWriter, r *http.Request) {
	if !asks(w, r) {
		return
	}
	h.sendStatus(w)
}

// sendStatus answers sys/seal-status, and sys/unseal when it went well.
func (h *Handler) sendStatus(w http.ResponseWriter) {
	s := h.gate.Status()
	sendJSON(w, http.StatusOK, sealAnswer{
		Type: s.Seal, Initialized: s.Initialized, Sealed: s.Sealed, Version: s.Reported,
		Threshold: s.Threshold, Shares: s.Shares, Progress: s.Progress, Nonce: s.Nonce,
		ClusterName: s.ClusterName, ClusterID: s.ClusterID, StorageType: s.Storage, LessorVersion: s.Version,
	})
}

type sealBackend struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
}

// sealBackends answers what Vault tells of the services that unseal it. lessor asks none while it serves.
func (h *Handler) sealBackends(w http.ResponseWriter, r *http.Request) {
	if !asks(w, r) {
		return
	}
	sendJSON(w, http.StatusOK, struct {
		Healthy      bool          `json:"healthy"`
		Backends     []sealBackend `json:"backends"`
		FullyWrapped bool          `json:"fully_wrapped"`
	}{true, []sealBackend{{h.gate.Status().Seal, true}}, true})
}

type leaderAnswer struct {
	HAEnabled          bool      `json:"ha_enabled"`
	IsSelf             bool      `json:"is_self"`
	ActiveTime         time.Time `json:"active_time"`
	LeaderAddress      string    `json:"leader_address"`
	ClusterAddress     string    `json:"leader_cluster_address"`
	PerformanceStandby bool      `json:"performance_standby"`
	StandbyRemoteWAL   uint64    `json:"performance_standby_last_remote_wal"`
}

// leader answers, on a store that no other node shares, as a single node of Vault does: sealed or not, with all the fields that say no.
// Of several nodes each is active, so each says that it is the leader.
func (h *Handler) leader(w http.ResponseWriter, r *http.Request) {
	if !asks(w, r) {
		return
	}
	s := h.gate.Status()
	if !s.Shared {
		sendJSON(w, http.StatusOK, leaderAnswer{})
		return
	}
	a := leaderAnswer{HAEnabled: true}
	if !s.Sealed && !s.Away {
		a.IsSelf, a.ActiveTime, a.LeaderAddress, a.ClusterAddress = true, s.Since.UTC(), s.Address, s.Address
	}
	sendJSON(w, http.StatusOK, a)
}

// initialized answers whether the store is.
func (h *Handler) initialized(w http.ResponseWriter, r *http.Request) {
	if !asks(w, r) {
		return
	}
	s := h.gate.Status()
	sendJSON(w, http.StatusOK, struct {
		Initialized bool `json:"initialized"`
	}{s.Initialized})
}

// asks reports whether the request only asks; otherwise it is refused.
func asks(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	writeErrors(w, http.StatusMethodNotAllowed, "method not allowed")
	return false
}

func sendJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // none of the types above can fail
	}
	send(w, status, body)
}
