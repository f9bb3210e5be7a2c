package linux

import (
	"github.com/sluice-gateway/sluice/internal/core"
	"github.com/sluice-gateway/sluice/internal/errs"
	"github.com/sluice-gateway/sluice/internal/flowlog"
	"github.com/sluice-gateway/sluice/internal/policy"
)

// flowLog is what a virtual network has to do with its flow log.
type flowLog struct {
	log  *flowlog.Log // nil: none of its NSGs asks for one
	mark uint32       // what its rules put on flows; 0: nothing
	err  error        // why it is not as it should be
}

// logFlows prepares the flow log for rules that are about to be compiled. What they mark
// is always counted, since the log is open before the kernel has the mark.
func (v *vnet) logFlows() (err error) {
	f := &v.flows
	f.mark = 0
	if !policy.LogsFlows(v.goal) {
		if f.log != nil {
			err = f.log.Off()
			f.log = nil
		}
		return err
	}
	rules, err := flowlog.NewRules(v.goal, v.resolvers())
	if err != nil {
		return err
	}
	if f.log == nil {
		log, err := flowlog.Open(flowlog.Options{
			Dir: v.n.opts.FlowLogDir, Tenant: v.goal.Tenant, Network: v.goal.Name,
			Inside: v.at.do, FlushEvery: v.n.opts.FlowLogFlush, Logger: v.n.log,
		})
		if err != nil {
			return err
		}
		f.log = log
	}
	f.mark = rules.Mark
	return f.log.Set(rules, v.goal.NSGs)
}

// reportFlows says why flows are not logged; the next Set tries again. The rules are in
// force without the log.
func (v *vnet) reportFlows() {
	if v.flows.err == nil {
		return
	}
	v.ready = false
	v.problem(v.object(), errs.New(errs.Internal, "the flow log of virtual network %s: %w", v.goal.Name, v.flows.err).
		On(string(core.KindVirtualNetwork)+"/"+v.goal.Name, "").
		WithHint("look at the space and the permissions below %s", v.n.opts.FlowLogDir))
}

// closeFlows ends the flow log; gone says that the flows end with the network.
func (v *vnet) closeFlows(gone bool) {
	if v.flows.log == nil {
		return
	}
	end := v.flows.log.Close
	if gone {
		end = v.flows.log.Gone
	}
	v.n.warn("closing the flow log of virtual network "+v.goal.Name, end())
	v.flows = flowLog{}
}
