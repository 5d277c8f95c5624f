package lessorsql

// Newest is the serial of the value that connections are to have.
func (c *Connector) Newest() uint64 { return c.newest.Load() }
