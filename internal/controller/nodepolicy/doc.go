// Package nodepolicy keeps nodes from getting old. For each NodePolicy it plans (package lifetime) when every selected node
// goes, asks the ledger whether one that is due may begin, and leads those that may through a rotation (package machine):
// hold the machine, make room, cordon, ask for the replacement of every instance on it (NodeExpiring), evict the gateways,
// and only then have the machine replaced. What there is to remember is in the policy's status, which is written before
// anything is done. It runs on the elected leader only, one policy at a time, because the ledger is one.
package nodepolicy
